# make video   installs what is missing, builds, and makes output/video.mp4 from PROMPT
# make test    installs what is missing, builds and runs every test
# make dist    a stripped binary that runs on other machines: dist/turbodiffusion
# make kernels compiles every CUDA kernel for every architecture; needs no GPU
# make study   measures what acceleration costs nano, into output/quality; FOLDER: where teacher, plain student, classifier
#              and captions are; OPTIONS=--help tells more

PROMPT ?= A small red sphere bounces on a checkered floor.
OPTIONS ?=
FOLDER ?= .

BINARY := .build/release/turbodiffusion
SOURCES := Package.swift $(shell find Sources -type f)
BUILD := swift build -c release -Xswiftc -static-stdlib --product turbodiffusion

.PHONY: help video build test dist kernels study format lint clean
help:
	@sed -n 's/^# //p' Makefile

video: packages $(BINARY)
	@mkdir -p output
	@$(BINARY) t2v --model nano --prompt "$(PROMPT)" --save_path output/video.mp4 $(OPTIONS)

build: $(BINARY)

# Make, not SwiftPM, decides whether there is something to build: that takes no time.
$(BINARY): $(SOURCES)
	$(BUILD)
	@touch $(BINARY)

# Tests run optimised: they execute the real models.
test: packages
	swift test -c release -Xswiftc -enable-testing --scratch-path .build-test

dist: $(BINARY)
	@mkdir -p dist
	strip -o dist/turbodiffusion $(BINARY)

kernels: $(BINARY)
	$(BINARY) kernels check --cuda-libraries "$$(Scripts/nvrtc)"

# A study beside the program: it is built only here and for the tests.
study:
	swift build -c release -Xswiftc -static-stdlib --product nano-study
	.build/release/nano-study "$(FOLDER)" $(OPTIONS)

format:
	swift format --in-place --recursive Package.swift Sources Studies Tests

lint:
	swift format lint --strict --recursive Package.swift Sources Studies Tests

clean:
	rm -rf .build .build-test dist output

.PHONY: packages
packages:
	@Scripts/install-packages
