# `make help` lists the targets. Paths are relative, so a checkout may lie in a folder with spaces.
PYTHON ?= python3
WORKERS ?= 2

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread a worker: two workers with a thread pool each are slower than one on two cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest

.PHONY: help setup demo test test-slow test-gpu lint format docs docs-serve clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)$$/make \1|\2/p' Makefile | column -t -s '|'
	@echo "variables: PYTHON=$(PYTHON) (3.11 or newer, makes $(VENV)), WORKERS=$(WORKERS) (test processes)"

setup: $(STAMP) ## install the package and its tools into .venv

# Made again when a dependency or a tested version changes.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "'$(PYTHON)' is not there; name a Python 3.11 or newer: make PYTHON=/path/to/python3.11 setup" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "interptrain needs Python 3.11 or newer, '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1); name another: make PYTHON=/path/to/python3.11 setup" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: setup ## run the recipe pirate-arithmetic and write its report to runs/demo
	$(BIN)/python -m interptrain recipe run pirate-arithmetic --out runs/demo

test: setup ## every test that needs neither minutes nor a GPU
	@$(PYTEST) -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

test-slow: setup ## the tests that take minutes
	@$(PYTEST) -n $(WORKERS) --dist loadfile -m "slow and not gpu"

test-gpu: setup ## the tests that need a CUDA device
	@$(PYTEST) -m gpu

lint: setup ## ruff, the formatter, strict types and the import contracts
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports --no-logo

format: setup ## let ruff format and mend what it can
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

docs: setup ## build the documentation into site/, warnings being errors; open site/index.html
	@$(MKDOCS) build --strict --config-file docs/site/mkdocs.yml
	@echo "written to site/index.html"

docs-serve: setup ## show it on this machine, and again when a page changes
	@$(MKDOCS) serve --config-file docs/site/mkdocs.yml --dev-addr 127.0.0.1:8000 --watch interptrain --watch README.md

clean: ## remove the environment, caches and builds; runs/ stays
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
