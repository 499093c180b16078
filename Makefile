# make demo, make test, make lint; each makes .venv and installs what it needs, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint notebook benchmark-quick clean

demo: $(VENV)/demo.stamp
	$(BIN)/ocs_tf demo

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebook: $(VENV)/test.stamp
	$(BIN)/python -m nbconvert --to notebook --execute \
	    --output-dir $(VENV)/notebooks notebooks/*.ipynb

benchmark-quick: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks --quick

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A stamp is older than setup.py once the dependencies may have changed.
$(VENV)/%.stamp: setup.py pyproject.toml | $(VENV)/bin/python
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info < (3, 14) or sys.exit( \
	    "ocs_tf needs Python 3.10 .. 3.13, but $(PYTHON) is %d.%d. Choose another one: " \
	    "make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

.SECONDARY:
