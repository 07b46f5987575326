# The two commands: `make demo` and `make test`. Both first set up .venv, again only when its pins or pyproject.toml change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/ready-$(firstword $(shell cat constraints.txt pyproject.toml | cksum))

.PHONY: demo test lint coverage venv clean

demo: venv
	@set -e; for model in wdl din dien dlrm; do $(BIN)/python examples/$$model.py; done

test: lint
	@$(BIN)/python -m pytest -n 2

coverage: venv
	@$(BIN)/python -m pytest -q -n 2 --cov=recopt --cov=passes --cov=patterns --cov-report=json:.coverage.json
	@$(BIN)/python tests/coverage_by_room.py .coverage.json

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

venv: $(STAMP)

# Debian ships venv without pip unless python3-venv is installed: then a pip of the system can fill the folder.
# torch goes first: with it in place, no other package can draw in another build of it.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "recopt needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } || { rm -rf $(VENV); \
	    echo "$(PYTHON) can make no environment: install Debian's python3-venv (or python3-pip)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
