# make demo | test | lint | paper-tables | clean. Everything is installed into .venv; PYTHON is the interpreter that creates it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# The networks are small: one thread is the fastest, and leaves the cores to parallel environments.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

.PHONY: help demo test lint paper-tables clean

help:
	@echo "make demo   train, evaluate and use skills in a few minutes"
	@echo "make test   run the tests"
	@echo "make lint   check format, lint and types"
	@echo "make paper-tables  write the tables and pictures of README.md and docs from the committed results"
	@echo "make clean  remove the virtual environment and all caches"

demo: $(VENV)/.demo-installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -q --tb=short

lint: $(VENV)/.dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

paper-tables: $(VENV)/.dev-installed
	$(BIN)/python experiments/tables.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "didi-gym needs Python 3.10 or newer, and $(PYTHON) is not: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is written only after a complete installation, and renewed when the requirements change.
$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing didi-gym[envs,viz] into $(VENV) (once; some minutes)"
	@$(PIP) install -c constraints.txt -e '.[envs,viz]'
	@touch $@

$(VENV)/.dev-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing didi-gym[envs,viz,dev] into $(VENV) (once; some minutes)"
	@$(PIP) install -c constraints.txt -e '.[envs,viz,dev]'
	@touch $@ $(VENV)/.demo-installed
