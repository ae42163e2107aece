# `make demo` and `make test` do everything on a bare machine that has Python >= 3.11 with venv, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The one package that is not in requirements.lock, because its CPU and CUDA builds have different files.
TORCH := 2.13.0
HAS_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)

# Where Python may keep no bytecode, as in many containers, every process would compile all of torch and transformers anew: ten
# seconds each. Within .venv it may.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-thorough test-slow test-gpu perf check format lock clean help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# --no-compile: Python compiles what is imported, when it is imported; all of it at once would take half of the time.
PIP := $(BIN)/python -m pip install -q
# Three ways to torch: where there is a GPU, or no Linux, the plain wheel. Elsewhere the plain wheel would bring gigabytes of
# CUDA libraries for nothing: take a CPU wheel from where pip is set up to look, else let uv fetch one, else give in.
$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=24"
	@echo "Installing torch $(TORCH) $(if $(HAS_GPU),for CUDA,for the CPU)"
	$(BIN)/python -c 'import torch; assert torch.__version__.startswith("$(TORCH)")' 2>/dev/null || \
	  { test "$$(uname)" = Linux && test -z "$(HAS_GPU)" && { \
	      $(PIP) --no-compile "torch==$(TORCH)+cpu" 2>/dev/null || \
	      { $(PIP) uv && \
	        $(BIN)/uv pip install -q --python $(BIN)/python --torch-backend=cpu "torch==$(TORCH)"; }; }; } || \
	  $(PIP) --no-compile "torch==$(TORCH)"
	@echo "Installing what requirements.lock lists"
	$(PIP) --no-compile --no-deps --require-hashes -r requirements.lock
	$(PIP) --no-deps -e .
	@touch $@

setup: $(READY)  ## install into .venv (once; again when the requirements change)

demo: $(READY)  ## forget some fictitious people and look at outputs/demo/report.html
	$(BIN)/mmunlearn demo

# In the order of the folders, so that the long files begin first: the last process then does not end long after the others.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(READY)  ## all tests but those of the three lines below
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-thorough: $(READY)  ## sharding, kills, every family, whole pages of commands; the gate runs them too
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "thorough and not slow"

test-slow: $(READY)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

perf: $(READY)  ## measure speed against plain loops and against perf/results.json; RECORD=1 writes it anew
	OMP_NUM_THREADS=1 $(BIN)/python -m perf $(if $(RECORD),--record)

check: $(READY)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff format everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)  ## make requirements.lock anew from pyproject.toml
	$(PIP) uv
	$(BIN)/python -m pip download -q --no-deps -d $(VENV)/wheels "torch==$(TORCH)+cpu"
	echo "torch==$(TORCH)+cpu" > $(VENV)/torch.txt
	$(BIN)/uv pip compile --find-links $(VENV)/wheels -c $(VENV)/torch.txt -q pyproject.toml --group dev --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-package torch --no-emit-index-url -o requirements.lock

clean:  ## delete the environment and all outputs
	rm -rf $(VENV) outputs
