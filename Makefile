# Two commands a newcomer needs: `make run` and `make test`. Both set up .venv from requirements/ first, every download
# checked against the hash there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKDIR ?= runs/digits

.PHONY: run test lint types notebooks outputs docs audit licences release lock clean

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

# What the notebooks show, kept in them; of torch as well where it is installed.
outputs: run $(VENV)/test.stamp
	CFTJAX_RUN=$(WORKDIR) $(BIN)/python .ci/notebooks.py

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'cftjax needs Python 3.11 or newer; name one with: make run PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)

# pip has no hash for a folder, so that this one comes second, built by the setuptools of the first.
INSTALL = $(BIN)/python -m pip install --quiet
$(VENV)/run.stamp: pyproject.toml requirements/run.txt | $(BIN)/python
	$(INSTALL) --require-hashes -r requirements/run.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/test.stamp: pyproject.toml requirements/test.txt | $(BIN)/python
	$(INSTALL) --require-hashes -r requirements/test.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@ $(VENV)/run.stamp

# Known vulnerabilities of the pinned versions.
audit: $(BIN)/python
	$(BIN)/python .ci/audit.py

# Their licences, into docs/licences.md.
licences: $(VENV)/test.stamp
	$(BIN)/python .ci/licences.py

# Wheel and sdist of the commit that is checked out, into dist/, twice: they must be equal to the byte.
release: $(VENV)/test.stamp
	$(BIN)/python .ci/release.py

# The newest versions that work together, for every supported Python; needs uv. constraints.txt has those of all extras
# but accelerators', DICOM, the hub, ONNX, W&B, MLflow and the preparing of TFDS, for `pip install -c`; requirements/ the same ones with
# the hashes of PyPI's files.
COMPILE = uv pip compile pyproject.toml --group build --universal --python-version 3.11 --fork-strategy fewest \
  --no-header --no-annotate --no-emit-index-url --quiet
lock:
	$(COMPILE) --extra test --extra notebooks --upgrade --output-file constraints.txt
	$(COMPILE) -c constraints.txt --generate-hashes --upgrade --output-file requirements/run.txt
	$(COMPILE) -c constraints.txt --generate-hashes --upgrade --extra test --output-file requirements/test.txt
	$(COMPILE) -c constraints.txt --generate-hashes --upgrade --extra cuda --output-file requirements/cuda.txt

# The documentation as a site, in site/; a warning, such as a link that leads nowhere, is an error.
docs: $(VENV)/docs.stamp
	$(BIN)/mkdocs build --strict --quiet

# Without the lock: what it brings is no part of the library.
$(VENV)/docs.stamp: pyproject.toml | $(VENV)/run.stamp
	$(INSTALL) -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) runs
