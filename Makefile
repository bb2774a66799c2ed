# `make chain` and `make test` need nothing but git, make and Python >= 3.11; every target installs into $(VENV) first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
# Two processes: while one waits for a server, the other computes. One thread each.
PYTEST := OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help lint test test-unit chain chaos docs

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

chain: $(INSTALLED)  ## run every stage for both models, then print scores, times and champions
	@$(IN_VENV) sh -c 'dvc repro && mgpt report'

# import-linter runs without its cache, which misses packages that are added later.
lint: $(INSTALLED)  ## ruff, mypy, import-linter and codespell
	@$(IN_VENV) sh -c 'ruff check --quiet . && ruff format --check --quiet . && mypy --no-error-summary && lint-imports --no-logo --no-cache && codespell'

test: lint  ## lint, unit tests and integration tests
	@$(IN_VENV) $(PYTEST) tests/unit tests/integration

test-unit: $(INSTALLED)  ## unit tests only: no server, no subprocess, seconds each
	@$(IN_VENV) $(PYTEST) tests/unit

chaos: $(INSTALLED)  ## kill a small training at random steps; writes benchmarks/results/chaos.json
	@$(IN_VENV) python -m benchmarks.chaos

docs: $(INSTALLED)  ## build the documentation into site/
	@$(IN_VENV) NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name one with make PYTHON=..." >&2; exit 1; }
	@echo "installing into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check --no-compile --constraint constraints.txt --editable ".[dev]"
	@echo "compiling installed packages"
	@# Compiled on all cores; pip would use one, and compile every model of transformers too: forty seconds longer.
	@$(BIN)/python -m compileall -q -q -j 0 -x 'transformers/models/|/tests?/|/testing/|/rllib/' $(VENV)/lib || true
	@touch $@
