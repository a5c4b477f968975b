# make video   builds, installs what is missing, and makes a video in output/ from PROMPT;
#              OPTIONS: further options of `turbodiffusion t2v`, such as OPTIONS="--seed 7 --num_frames 81"
# make test    installs what is missing, builds and runs every test
# make dist    a stripped binary that runs on other machines: dist/turbodiffusion
# make kernels compiles every CUDA kernel for every architecture; needs no GPU
# make load    1,000 requests of 50 clients to the service, which is killed ten times in between: none lost, none doubled
# make study   measures what acceleration costs nano, into output/quality; FOLDER: where teacher, plain student, classifier
#              and captions are; OPTIONS=--help tells more

PROMPT ?= A small red sphere bounces on a checkered floor.
OPTIONS ?=
FOLDER ?= .
# As it was typed: neither make nor the shell looks into it.
override PROMPT := $(value PROMPT)
export PROMPT

BINARY := .build/release/turbodiffusion
SOURCES := Package.swift $(shell find Sources -type f)
# Without the local rpath: libraries are never looked for beside the program.
BUILD := swift build -c release -Xswiftc -static-stdlib --disable-local-rpath --product turbodiffusion

.PHONY: help video build test dist kernels study format lint clean
help:
	@sed -n '/^#/!q; s/^# //p' Makefile

video: $(BINARY) packages
	@mkdir -p output
	@video=output/video.mp4; n=2; while [ -e "$$video" ]; do video=output/video-$$n.mp4; n=$$((n + 1)); done; \
	$(BINARY) t2v --model nano --prompt="$$PROMPT" --save_path "$$video" $(OPTIONS)

build: $(BINARY)

# Make, not SwiftPM, decides whether there is something to build: that takes no time.
$(BINARY): $(SOURCES)
	@Scripts/check-swift
	@Scripts/install-packages --build
	$(BUILD)
	@touch $(BINARY)

# Tests run optimised: they execute the real models.
test: swift packages
	swift test -c release -Xswiftc -enable-testing --scratch-path .build-test

dist: $(BINARY)
	@mkdir -p dist
	strip -o dist/turbodiffusion $(BINARY)

kernels: $(BINARY)
	folder=$$(Scripts/nvrtc) && $(BINARY) kernels check --cuda-libraries "$$folder"

# Python's packages for the tests of the service.
CLIENT := .venv/bin/python
$(CLIENT):
	python3 -m venv .venv
	.venv/bin/pip install --quiet openai==3.57.0

LOAD ?= --requests 1000 --clients 50 --kills 10
.PHONY: load client
load: $(BINARY) packages
	python3 Tests/Service/load.py $(LOAD)

client: $(BINARY) packages $(CLIENT)
	$(CLIENT) Tests/Service/client.py

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

.PHONY: swift packages
swift:
	@Scripts/check-swift

packages:
	@Scripts/install-packages
