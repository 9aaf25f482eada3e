# Every target sets up what it needs; a fresh machine wants only Python 3.11, make and a package index.
PYTHON ?= python3.11
CURRENT := .venv
CEREBRAS := .venv-cerebras
PYTEST_JOBS ?= 2

.PHONY: help demo test test-cerebras check bench clean

help:
	@echo "make demo           text to tokens to a trained model to a release and back, for both families (CPU)"
	@echo "make test           the whole test suite with the newest torch and transformers"
	@echo "make test-cerebras  the same with cerebras_pytorch 2.10 and its pins"
	@echo "make check          format, lint, types, import directions and the fast tests"
	@echo "make bench          every measurement of BENCHMARKS.md"

$(CURRENT)/.ready: requirements/current.txt setup.cfg
	$(PYTHON) -m venv $(CURRENT)
	$(CURRENT)/bin/pip install --quiet --disable-pip-version-check -r requirements/current.txt
	$(CURRENT)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(CEREBRAS)/.ready: requirements/cerebras.txt setup.cfg
	$(PYTHON) -m venv $(CEREBRAS)
	$(CEREBRAS)/bin/pip install --quiet --disable-pip-version-check -r requirements/cerebras.txt
	$(CEREBRAS)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(CURRENT)/.ready
	$(CURRENT)/bin/python runs/demo.py $(DEMO_ARGS)

test: $(CURRENT)/.ready
	OMP_NUM_THREADS=1 $(CURRENT)/bin/python -m pytest -q -n $(PYTEST_JOBS)

test-cerebras: $(CEREBRAS)/.ready
	OMP_NUM_THREADS=1 $(CEREBRAS)/bin/python -m pytest -q -n $(PYTEST_JOBS)

check: $(CURRENT)/.ready
	$(CURRENT)/bin/ruff format --check .
	$(CURRENT)/bin/ruff check .
	$(CURRENT)/bin/mypy
	OMP_NUM_THREADS=1 $(CURRENT)/bin/python -m pytest -q -n $(PYTEST_JOBS) -m "not slow"

bench: $(CURRENT)/.ready
	$(CURRENT)/bin/python benchmarks/training_speed.py
	$(CURRENT)/bin/python benchmarks/conversion.py --directory build/benchmark
	$(CURRENT)/bin/python benchmarks/conversion.py --directory build/benchmark --memory

clean:
	rm -rf build demo_output .pytest_cache .mypy_cache .ruff_cache *.egg-info
