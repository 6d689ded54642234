# Two commands for everybody:   make demo   make test
# Each makes the virtual environment that it needs, once; python3, python3-venv and make are enough.

PYTHON ?= python3
BIN := .venv/bin
STORE := demo-store

.PHONY: help demo test quick check lint types layers tests format bench acceptance clean

help:
	@echo "make demo        real flights, turned into windows, in an event log that can be read back"
	@echo "make test        all checks: style, types, layers, tests"
	@echo "make quick       the same without slow tests"
	@echo "make format      format the code"
	@echo "make bench       measure against DuckDB and Polars"
	@echo "make acceptance  print every promise with its figure and its bar"
	@echo "make clean       remove environment, caches and the demo's store"

demo: .venv/ready
	@rm -rf $(STORE)
	@printf '\n$$ dataflow run examples/flight_delays.py --store $(STORE)\n'
	@$(BIN)/dataflow run examples/flight_delays.py --store $(STORE)
	@printf '\n$$ dataflow log cat hourly_delays --store $(STORE) --limit 12\n'
	@$(BIN)/dataflow log cat hourly_delays --store $(STORE) --limit 12 --format table
	@printf '\nTry next:\n'
	@printf '  $(BIN)/dataflow explain examples/flight_delays.py\n'
	@printf '  $(BIN)/dataflow log ls --store $(STORE)\n'
	@printf '  $(BIN)/dataflow log cat hourly_delays --store $(STORE) --json\n'
	@printf '  and change the window or the delay in examples/flight_delays.py, then: make demo\n'

test: check tests

quick: check
	$(BIN)/pytest -q -m "not slow and not packaging"

check: lint types layers

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready-dev
	$(BIN)/mypy

layers: .venv/ready-dev
	$(BIN)/lint-imports --no-logo

tests: .venv/ready-dev
	$(BIN)/pytest

format: .venv/ready-dev
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

bench: .venv/ready-dev
	$(BIN)/python benchmarks/tumbling.py

acceptance: .venv/ready-dev
	$(BIN)/python benchmarks/acceptance.py A1
	$(BIN)/python benchmarks/acceptance.py A2

clean:
	rm -rf .venv $(STORE) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# One environment, filled in two steps: what users need, then what developers need.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/ready: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/ready-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch .venv/ready $@
