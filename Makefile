# Everything a person types. Each target does its own set-up: Python 3.11 or newer is all that must be there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The products in the tests are small: two workers gain more than two threads.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test test-long check lint types format bench clean help

help:
	@echo "make demo    convert SmolLM2-135M end to end and prove it (main job)"
	@echo "make test    run the tests"
	@echo "make test-long  run those that take minutes: every zoo architecture lowered, every benchmark task and recipe graded, more conversions"
	@echo "make check   linters and type checker"
	@echo "make bench   benchmarks, side by side with what one would use instead"

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[verify,dev]"
	@touch $(READY)

demo: $(READY)
	$(BIN)/neuron-port convert smollm2-135m --output bundles/smollm2-135m

test: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto

test-long: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto -m long

check: lint types

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python benchmarks/simulator_speed.py
	$(BIN)/python benchmarks/latency_calibration.py
	$(BIN)/python benchmarks/latency_order.py
	$(BIN)/python benchmarks/latency_variants.py
	$(BIN)/python benchmarks/verdicts.py
	$(BIN)/python benchmarks/layers.py
	$(BIN)/python benchmarks/conversion.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
