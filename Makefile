# Two commands: `make serve` sets everything up and serves; `make test` sets everything up and passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED := 0
export RAY_SERVE_ENABLE_HA_PROXY ?= 1
export RAY_worker_niceness ?= 0
# Around every HTTP server of Ray Serve: our error objects, and headers that Serve can read.
export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH ?= deployments.edge:middlewares
# Ctrl-C: Serve waits so long for load balancers in front of it to notice (30 by default); there is none here.
export RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S ?= 1

.PHONY: serve test lint install install-test model clean

serve: install model
	$(BIN)/serve run serve_config.yaml

test: install-test model
	$(MAKE) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

model: install
	$(BIN)/python -m medha_actors.model.embedded

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
