# Two commands: `make serve` sets everything up and serves; `make test` sets everything up and passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED := 0
export RAY_worker_niceness ?= 0

.PHONY: serve test pytest chaos conformance gpu-check lint install install-test model clean

serve: install model
	$(BIN)/medha-serve serve_config.yaml

test: install-test model
	$(MAKE) --jobs=2 lint pytest

pytest: install-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

# Everything that docs/reliability.md promises, measured: about two hours. One part: python -m tests.chaos kills
chaos: install-test model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow
	$(BIN)/python -m tests.chaos all

# Real tools against a real server: docs/conformance.md. Some of them: python -m tests.conformance TOOL ...
conformance: install-test model
	$(BIN)/python -m tests.conformance

# Everything that only a GPU can show, in nine minutes: docs/gpu.md. Some of it:
# python -m medha_actors.bench gpu --only attention step
gpu-check: install-test
	$(BIN)/python -m medha_actors.bench gpu

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

model: install
	$(BIN)/python -m medha_actors.files.embedded

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV)
