# `make demo` and `make test` work on a fresh machine with Python 3.11 or later and a package
# registry. Paths stay relative, so that the checkout may lie in a folder with spaces.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet
CONSTRAINTS := $(VENV)/constraints.txt

.PHONY: demo test fast-test lint docs oldest schema clean

demo: $(VENV)/.demo-installed
	@echo "== run the demo: generated images -> features -> linear SVMs -> report"
	$(RUN) -m spptransfer run pipelines/demo.yaml

test: $(VENV)/.test-installed lint
	@echo "== tests: unit tests, doctests, slow end-to-end tests"
	$(RUN) -m pytest -n auto --maxprocesses 8 --dist worksteal

fast-test: $(VENV)/.test-installed
	$(RUN) -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow"

lint: $(VENV)/.test-installed
	@echo "== lint and types"
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	for system in linux darwin win32; do $(RUN) -m mypy --platform $$system || exit 1; done

docs: $(VENV)/.docs-installed
	@echo "== documents as a site, in build/html; a warning is an error"
	$(RUN) -m sphinx -q -W --keep-going docs build/html

$(VENV)/bin/python:
	@echo "== make an environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)

# A torch that the user installed (for CUDA, say) is left alone: its pin is taken out.
$(CONSTRAINTS): constraints.txt $(VENV)/bin/python
	@if $(RUN) -c "import torch" 2>/dev/null; \
	then grep -v '^torch==' constraints.txt > $@; \
	else cp constraints.txt $@; fi

$(VENV)/.demo-installed: pyproject.toml $(CONSTRAINTS)
	@echo "== install the package"
	$(PIP) install --constraint $(CONSTRAINTS) --editable .
	@touch $@

$(VENV)/.test-installed: pyproject.toml $(CONSTRAINTS)
	@echo "== install the package and what its tests need"
	$(PIP) install --constraint $(CONSTRAINTS) --editable ".[test]"
	@touch $@ $(VENV)/.demo-installed

$(VENV)/.docs-installed: pyproject.toml $(CONSTRAINTS)
	@echo "== install the package and what its documents need"
	$(PIP) install --constraint $(CONSTRAINTS) --editable ".[docs]"
	@touch $@ $(VENV)/.demo-installed

# The oldest releases that pyproject.toml allows, in an environment of their own.
oldest:
	@echo "== tests with the oldest releases allowed, in .venv-oldest"
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip --disable-pip-version-check --quiet install \
	--constraint constraints-oldest.txt --editable ".[test]"
	.venv-oldest/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow"

clean:
	rm -rf $(VENV) .venv-oldest docs/_api docs/_notebooks .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

schema: $(VENV)/.demo-installed
	$(RUN) -c "import json; from spptransfer.config import Pipeline; \
	print(json.dumps(Pipeline.model_json_schema(), indent=1))" > pipelines/pipeline.schema.json
	$(RUN) -c "import json; from spptransfer.pretraining.config import PretrainingPipeline; \
	print(json.dumps(PretrainingPipeline.model_json_schema(), indent=1))" \
	> pipelines/pretraining.schema.json
