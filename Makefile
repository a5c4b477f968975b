# make video   builds, installs what is missing, and makes a video in output/ from PROMPT;
#              OPTIONS: further options of `turbodiffusion t2v`, such as OPTIONS="--seed 7 --num_frames 81"
# make test    installs what is missing, builds and runs every test
# make dist    a stripped binary that runs on other machines: dist/turbodiffusion
# make wheel   a package for pip: program, nano, Python package (docs/python.md)
# make python  the wheel in a fresh environment, in .venv-wheel, and the tests of the Python package there
# make bare-debian  installs the wheel on a bare Debian 12 in a folder of its own, and makes a video there; needs root and debootstrap
# make release what a release consists of, into dist/release: archive with the kernels of all cards, checksums, SBOM,
#              install script, Dockerfile; some minutes
# make kernels compiles every CUDA kernel for every architecture; needs no GPU
# make sanitize  builds and runs every test under AddressSanitizer (half an hour)
# make fuzz    damaged inputs for every reader of foreign bytes: RUNS each (a million)
# make torture kills each writing command at RUNS random moments (200), then runs ten times as many random commands
# make load    1,000 requests of 50 clients to the service, which is killed ten times in between: none lost, none doubled
# make soak    an hour (SECONDS) of mixed and bad requests to the service: nothing of its own making fails, nothing grows
# make ray     tests the fleet on Ray Serve: nodes of a cluster are killed under load; half an hour (docs/ray.md)
# make page    tests the page of the service in Debian's chromium; pictures of it go to output/page
# make downloads  models by name from a hub on this machine that fails in every way; TRANSFERS by chance (20)
# make terminal  tests the interactive terminal in tmux
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
BUILD := swift build -c release -Xswiftc -static-stdlib --disable-local-rpath -Xlinker --version-script=Scripts/exports.map -Xlinker --icf=safe --product turbodiffusion

.PHONY: help video build test dist kernels sanitize fuzz torture study format lint clean
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

# Tests run optimised: they execute the real models, which use all cores. One after the other: limits of time are then those
# of one test, and not of all at once.
test: swift packages
	swift test --no-parallel -c release -Xswiftc -enable-testing --scratch-path .build-test

dist: $(BINARY)
	@mkdir -p dist
	strip -o dist/turbodiffusion $(BINARY)

.PHONY: wheel python
wheel: dist
	Scripts/wheel dist/turbodiffusion dist

python: wheel packages
	rm -rf .venv-wheel
	python3 -m venv .venv-wheel
	.venv-wheel/bin/pip install --quiet dist/turbodiffusion_swift-*.whl
	.venv-wheel/bin/pip install --quiet pillow
	.venv-wheel/bin/python -m unittest discover --start-directory Python/tests --verbose
	.venv-wheel/bin/python -m unittest discover --start-directory Integrations/ComfyUI/tests --verbose

.PHONY: bare-debian
bare-debian: wheel
	@Scripts/install-packages debootstrap
	Scripts/try-bare-debian dist/turbodiffusion_swift-*.whl

.PHONY: release
release: dist
	folder=$$(Scripts/nvrtc) && $(BINARY) kernels build --arch sm_80 --arch sm_89 --arch sm_90a --arch sm_120a \
	    --cuda-libraries "$$folder" --output dist/kernels.pack
	Scripts/release dist/turbodiffusion dist/release dist/kernels.pack

kernels: $(BINARY)
	folder=$$(Scripts/nvrtc) && $(BINARY) kernels check --cuda-libraries "$$folder"

# The kernels on a GPU that this machine only plays. Cards: 80, 86, 89, 90, 120.
EMULATOR := .build-emulator
EMULATED := $(EMULATOR)/libcuda.so.1 $(EMULATOR)/libnvrtc.so.13
$(EMULATED) &: $(wildcard Tests/Emulator/*) Sources/CDrivers/include/cuda_driver.h | swift packages
	rm -rf $(EMULATOR) && mkdir -p $(EMULATOR)
	clang++ -std=c++20 -O2 -march=x86-64-v3 -Wall -Wno-nullability-completeness -fPIC -shared $(addprefix Tests/Emulator/,machine.cpp tensor_core.cpp driver.cpp) -Wl,-soname,libcuda.so.1 -o $(EMULATOR)/libcuda.so.1
	clang++ -std=c++20 -O2 -fPIC -shared -DEMULATOR_SOURCES='"$(CURDIR)/Tests/Emulator"' Tests/Emulator/nvrtc.cpp -Wl,-soname,libnvrtc.so.13 -o $(EMULATOR)/libnvrtc.so.13

.PHONY: emulate
emulate: $(BINARY) $(EMULATED)
	python3 Tests/Emulator/faults.py $(EMULATOR)
	for card in $(or $(CARDS),80 89 90 120); do \
	    TURBODIFFUSION_CUDA_LIBRARIES=$(CURDIR)/$(EMULATOR) XDG_CACHE_HOME=$(CURDIR)/$(EMULATOR)/cache EMULATOR_ARCHITECTURE=$$card \
	        $(BINARY) verify $(or $(FIXTURES),Tests/Golden/norms) --device cuda $(OPTIONS) || exit 1; \
	done

# Leaks are not looked for: what Swift keeps to the end is none. A trap that a test provokes is told without the minute that a
# backtrace through the sanitizer takes.
sanitize: swift packages
	TURBODIFFUSION_SANITIZED=1 SWIFT_BACKTRACE=enable=no ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 swift test --sanitize=address \
	    -c release -Xswiftc -enable-testing --scratch-path .build-sanitize $(if $(ONLY),--filter '$(ONLY)')

fuzz: swift
	TURBODIFFUSION_FUZZ=$(or $(RUNS),1000000) swift test -c release -Xswiftc -enable-testing \
	    --scratch-path .build-test --filter 'Fuzz'

torture: $(BINARY) packages
	Scripts/torture kills $(or $(RUNS),200)
	Scripts/torture commands $(or $(RUNS),200)0

# Of the service: the unmodified client, and many clients at once. Both need the program only.
LOAD ?= --requests 1000 --clients 50 --kills 10
.PHONY: load client soak
load: $(BINARY) packages
	python3 Tests/Service/load.py $(LOAD)

soak: $(BINARY) packages
	python3 Tests/Service/soak.py --seconds $(or $(SECONDS),3600)

# Needs the program and Python only.
.PHONY: downloads
downloads: $(BINARY) packages
	python3 Tests/Downloads/run.py --transfers $(or $(TRANSFERS),20)

client: $(BINARY) packages
	python=$$(Scripts/openai-client) && "$$python" Tests/Service/client.py

# The page in Debian's chromium.
BROWSER := .venv-page/bin/python
$(BROWSER):
	python3 -m venv .venv-page
	.venv-page/bin/pip install --quiet playwright==1.65.2

.PHONY: page terminal
page: $(BINARY) packages $(BROWSER)
	@Scripts/install-packages chromium
	$(BROWSER) Tests/Service/page.py output/page

# The fleet: 500 jobs of services that stand in, then 150 of the program itself.
RAY := .venv-ray/bin/python
$(RAY):
	python3 -m venv .venv-ray
	.venv-ray/bin/pip install --quiet 'ray[data,serve]==2.60.0'

.PHONY: ray
ray: $(BINARY) packages $(RAY)
	TURBODIFFUSION_PROGRAM=$(BINARY) $(RAY) -W ignore -m unittest discover --start-directory Integrations/Ray/tests
	$(RAY) Integrations/Ray/tests/cluster.py --jobs 500 --kills 20
	$(RAY) Integrations/Ray/tests/cluster.py --jobs 150 --kills 8 --every 6 --pause 4 --program $(BINARY) --no-growth --no-cards

# The terminal in tmux.
terminal: $(BINARY) packages
	@Scripts/install-packages tmux
	python3 Tests/Terminal/terminal.py

# A study beside the program: it is built only here and for the tests.
study:
	swift build -c release -Xswiftc -static-stdlib --product nano-study
	.build/release/nano-study "$(FOLDER)" $(OPTIONS)

format:
	swift format --in-place --recursive Package.swift Sources Studies Tests

lint:
	swift format lint --strict --recursive Package.swift Sources Studies Tests

clean:
	rm -rf .build .build-test .build-sanitize .build-emulator .venv-wheel dist output

.PHONY: swift packages
swift:
	@Scripts/check-swift

packages:
	@Scripts/install-packages
