# make demo   set up, edit a few dozen pictures with the built-in model, draw a contact sheet
# make test   set up, format, lint, types, tests; make endurance: the tests of whole runs that fail;
#             make soak: the longest of those; make gpu: those that need a GPU
#
# PYTHON names another interpreter. pip's own settings (a mirror, a folder of wheels) are honoured.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
LOWEST := .venv-lowest
CODE   := fpe.py fpe_core pipeline jobs tests
FUZZ_CASES ?= 100000
TEST_PROCESSES ?= 2
# Files in the order of tests/conftest.py, which has the long ones first, instead of xdist's.
SIDE_BY_SIDE := -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo test endurance soak gpu lowest fuzz check format clean

help:
	@echo "make setup    create $(VENV) with the pinned dependencies"
	@echo "make demo     set up, then run the main job on pictures it renders itself"
	@echo "make test     set up, then make check and the tests"
	@echo "make endurance  set up, then the tests of minutes: whole runs in which things fail"
	@echo "make soak     set up, then the longest of them, for before a release"
	@echo "make gpu      set up, then the tests that need a CUDA GPU; torch has to see one"
	@echo "make lowest   run the demo's job with the lower bounds of all dependencies, in $(LOWEST)"
	@echo "make fuzz     set up, then try FUZZ_CASES=$(FUZZ_CASES) hostile pictures, URIs and manifests"
	@echo "make check    format, lint and types"
	@echo "make format   put the code into its format"
	@echo "make clean    delete $(VENV), out/ and caches"

setup: $(READY)
	@echo "$(VENV) is ready"

# torch comes first and alone: it is the one download of hundreds of megabytes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Python 3.11 or newer is needed; $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>/dev/null || echo missing)."; \
	  echo "       Name another: make setup PYTHON=python3.12"; exit 2; } >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/fpe demo

test: check
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'not endurance and not gpu'

endurance: $(READY)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'endurance and not soak'

soak: $(READY)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m soak

gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

# From a wheel, in a folder of its own: it sees the program as somebody who installs it does.
lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --progress-bar off -c constraints-lowest.txt torch
	$(LOWEST)/bin/python -m pip install --progress-bar off -c constraints-lowest.txt '.[s3]'
	$(LOWEST)/bin/python -m pip check
	rm -rf out/lowest && mkdir -p out/lowest
	cd out/lowest && ../../$(LOWEST)/bin/fpe demo --scenes 2 --folder . \
	  && ../../$(LOWEST)/bin/fpe verify demo --recompute 2

fuzz: $(READY)
	FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest tests/faults -k hostile

check: $(READY)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

clean:
	rm -rf $(VENV) $(LOWEST) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
