# Everything that a checkout can do. `make` alone lists it.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.10 python3,$(shell command -v $(name))))
# JetPack 6's Python. pyenv's shim may be there and run nothing, so each is tried, when it is asked for.
DEVICE_PYTHON ?= $(firstword $(foreach name,python3.10 $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python),$(shell $(name) -c 'import ensurepip, sys; print(sys.executable)' 2>/dev/null)))
PIP_ARGS ?=
PYTEST_ARGS ?=
# Processes of the suite, each with its own torch; JOBS=0 runs all in one, for a debugger.
JOBS ?= $(shell nproc | awk '{ n = $$1 > 4 ? 4 : $$1; print n }')
GPU_ARGS ?=
WHEELS ?=
OFFLINE_PYTHON ?= python3
SOURCE ?= fake://scenes
CAMERA_ARGS ?=

BIN := .venv/bin
INSTALL = -m pip --disable-pip-version-check install --constraint constraints.txt $(PIP_ARGS)
BUILT = --build-constraint constraints.txt  # unknown to the pip that a new environment begins with
PIP = $(BIN)/python $(INSTALL)
CHECKPOINTS := samples/scenes/checkpoints
BUNDLES := $(patsubst $(CHECKPOINTS)/%/config.json,build/bundles/%,$(wildcard $(CHECKPOINTS)/*/config.json))
SPREAD := -n $(JOBS) --dist loadfile --no-loadscope-reorder  # what a module's fixtures made, its tests use
SOURCES := $(shell find sdk runtimes export -name '*.py')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo camera bundles setup check test device device-tests soak bench placement lmms-eval clean distclean gpu

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build/demo/manifest.json ## export the demo checkpoint, ask it a question at 100, 50 and 25 %
	$(BIN)/python samples/demo.py build/demo build/demo-overlay.png

camera: build/demo/manifest.json ## ask a camera in the browser; make camera SOURCE=/dev/video0
	$(BIN)/python samples/camera_qa/app.py --bundle build/demo $(foreach source,$(SOURCE),--source '$(source)') $(CAMERA_ARGS)

bundles: $(addsuffix /manifest.json,$(BUNDLES)) ## export every shipped checkpoint to build/bundles/FAMILY

setup: .venv/.tests ## make .venv with everything that checks and tests need

check: .venv/.tests ## format, lint, types, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

test: .venv/.tests .venv/.chromium ## run the suite, JOBS processes; PYTEST_ARGS="-k coverage" runs a part
	$(BIN)/python -m pytest $(SPREAD) $(PYTEST_ARGS)

# Promises that take minutes, and that make test has tried with the same code.
LONG := $(addprefix --ignore=tests/sdk/,test_camera_promises.py test_many_callers.py test_memory_growth.py test_memory_growth_stub.py test_out_of_memory.py test_stopping_promise.py)

device: ## test the robot's side as JetPack 6 has it: Python 3.10, no torch
	@if [ -n '$(DEVICE_PYTHON)' ]; then $(MAKE) --no-print-directory device-tests; else \
		echo 'make device: skipped, no Python 3.10 found (make device DEVICE_PYTHON=/path/to/python3.10)'; fi

device-tests: .venv/.tests .venv-device/.tests
	PYTHONPATH=tests/benchmarks $(BIN)/python tests/demo_bundle.py
	TOKPRUNE_TEST_DEVICE=1 .venv-device/bin/python -m pytest tests/sdk tests/runtimes -m 'not torch and not torchvision' $(SPREAD) $(LONG) $(PYTEST_ARGS)

soak: .venv/.tests ## try every promise at its full count; goes on where it was stopped
	SOAK=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

bench: .venv/.tests ## measure prefill at the size of a real LLM (a quarter of an hour, 8 GiB of memory)
	$(BIN)/python tests/benchmarks/prefill.py

placement: .venv-placement/.pip bundles ## see which nodes of the bundles go to CUDA; needs no GPU, but cc
	$(BIN)/python tests/benchmarks/cuda_placement.py .venv-placement/bin/python $(BUNDLES)

lmms-eval: .venv-lmms-eval/.tests ## run tokprune under lmms-eval's command line, on drawn tasks
	.venv-lmms-eval/bin/python -m pytest tests/export/test_lmms_eval.py $(PYTEST_ARGS)

# With WHEELS=folder nothing is fetched and there need be no .venv: run.py makes an environment of its
# own that sees OFFLINE_PYTHON's packages, the system's, as JetPack's TensorRT is one of these.
ifeq ($(WHEELS),)
gpu: .venv/.tests ## run everything that needs an NVIDIA GPU, into tests/gpu/results; offline: WHEELS=folder
	PYTHONPATH=tests/benchmarks $(BIN)/python tests/gpu/run.py $(GPU_ARGS)
else
gpu:
	'$(OFFLINE_PYTHON)' tests/gpu/run.py --wheels '$(WHEELS)' $(GPU_ARGS)
endif

clean: ## remove what was built
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

distclean: clean ## remove the environments too
	rm -rf .venv .venv-device .venv-placement .venv-lmms-eval

# Stamps: made last, so that what was interrupted is done again and what is done is not.

.venv/.pip: constraints.txt
	@test -n '$(PYTHON)' || { echo 'No Python found: make PYTHON=/path/to/python3.11'; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'tokprune needs Python 3.10 or newer: make PYTHON=/path/to/python3.11'; exit 1; }
	'$(PYTHON)' -m venv .venv
	$(PIP) --quiet pip
	@touch $@

.venv/.installed: .venv/.pip pyproject.toml
	$(PIP) $(BUILT) --editable '.[camera,export,serve]'
	@touch $@

# torchvision in a folder of its own: it is for HF's own processors, which the tests compare ours
# with. Its compiled half may not fit a CPU build of torch (tests/conftest.py), and transformers
# would import it in every program of the environment.
.venv/.tests: .venv/.installed
	$(PIP) $(BUILT) --group dev
	$(PIP) --no-deps --upgrade --target .venv/torchvision torchvision
	$(BIN)/python -m pip check
	@touch $@

# A browser for the camera page. Where none can be had, its tests are skipped and say so.
.venv/.chromium: .venv/.tests
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && apt-get update --quiet --quiet && \
		DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes --no-install-recommends chromium >/dev/null; } || \
		echo 'make test: there is no chromium, and it cannot be installed here: the camera page is not looked at'
	@touch $@

# The wheel, not the checkout, and nothing that a robot has not. A local folder is always built anew.
.venv-device/.tests: constraints.txt pyproject.toml $(SOURCES)
	test -x .venv-device/bin/python || '$(DEVICE_PYTHON)' -m venv .venv-device
	.venv-device/bin/python $(INSTALL) --quiet pip
	.venv-device/bin/python $(INSTALL) $(BUILT) '.[camera]' --group test
	.venv-device/bin/python -m pip check
	@touch $@

.venv-placement/.pip: constraints.txt
	'$(PYTHON)' -m venv .venv-placement
	.venv-placement/bin/python $(INSTALL) onnxruntime-gpu
	@touch $@

# The harness wants another PyAV than ours and forty packages that nothing else here needs: it lies
# in an environment of its own, which sees .venv's. Its own demands are not met, so no pip check.
.venv-lmms-eval/.tests: .venv/.tests
	$(BIN)/python -m venv .venv-lmms-eval
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> "$$(.venv-lmms-eval/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	.venv-lmms-eval/bin/python $(INSTALL) --quiet 'tokprune[lmms-eval]'
	.venv-lmms-eval/bin/python $(INSTALL) --quiet --no-deps lmms-eval
	@touch $@

.SECONDEXPANSION:

# A checkpoint is exported again where one of its files, or of ours, is newer. VILA's lie in folders.
build/bundles/%/manifest.json: .venv/.installed $$(wildcard $(CHECKPOINTS)/$$*/* $(CHECKPOINTS)/$$*/*/*) $(SOURCES)
	rm -rf $(@D)
	@mkdir -p build/bundles
	$(BIN)/tokprune-export $(CHECKPOINTS)/$* $(@D) --saliency $(addprefix --scorer ,$(wildcard $(CHECKPOINTS)/$*/scorer.safetensors)) \
		$(addprefix --glance-scorer ,$(wildcard $(CHECKPOINTS)/$*/glance_scorer.safetensors))

# The demo is one of the bundles under another name.
build/demo/manifest.json: build/bundles/qwen2_vl/manifest.json
	rm -rf build/demo
	ln -s bundles/qwen2_vl build/demo
