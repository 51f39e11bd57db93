# Two commands a newcomer needs: `make run` and `make test`. Both set up .venv from constraints.txt first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKDIR ?= runs/digits

.PHONY: run test lint types notebooks lock clean

run: $(VENV)/run.stamp
	$(BIN)/python -m cftjax.train --workdir $(WORKDIR)

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/pyright --pythonpath $(BIN)/python

notebooks: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m notebooks

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'cftjax needs Python 3.11 or newer; name one with: make run PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .[test]
	touch $@ $(VENV)/run.stamp

# The newest versions that work together, for every supported Python; needs uv.
lock:
	uv pip compile pyproject.toml --extra test --extra notebooks --universal --python-version 3.11 --fork-strategy fewest \
	  --no-header --no-annotate --no-emit-index-url --upgrade --quiet --output-file constraints.txt

clean:
	rm -rf $(VENV) runs
