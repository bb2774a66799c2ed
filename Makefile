# Two targets do everything from nothing but git, make and Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: chain test chaos

chain: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh -c 'dvc repro && mgpt report'

# Two processes: while one waits for servers, the other computes. The first of them runs the chain.
test: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 pytest -n 2 --dist loadscope --no-loadscope-reorder

# Kills a small training again and again; the result is a file.
chaos: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m benchmarks.chaos

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable ".[dev]"
	@# All cores compile what may be imported; pip would use one, for every model of transformers too, and take forty seconds longer.
	@$(BIN)/python -m compileall -q -q -j 0 -x 'transformers/models/|/tests?/|/testing/|/rllib/' $(VENV)/lib || true
	@touch $@
