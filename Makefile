# Every target sets up what it needs; a fresh machine wants only Python 3.11, make and a package index.
PYTHON ?= python3.11
PIP_INSTALL := pip install --quiet --disable-pip-version-check
CURRENT := .venv
PYTEST_JOBS ?= 2

MARKS ?= cerebras modelzoo llamacpp
MARKED_JOBS ?= 1

.PHONY: help demo format lint check test test-newest test-cerebras test-vllm test-marked update-newest bench clean

help:
	@echo "make demo           text to tokens to a trained model to a release and back, for both families (CPU)"
	@echo "make format         rewrites the code as ruff formats it, and mends what ruff can mend"
	@echo "make lint           format, lint and types, without a test"
	@echo "make check          the same, then the fast tests: import directions, golden files, each contract once"
	@echo "make test           the whole test suite with the current pins"
	@echo "make test-newest    the same with the newest transformers and what goes with it"
	@echo "make test-cerebras  the same with cerebras_pytorch 2.10 and its pins"
	@echo "make test-vllm      the tests of the mark vllm, with a build of vLLM for CPUs; docs/marked-tests.md"
	@echo "make test-marked PYTHON=/path/to/python MARKS=\"$(MARKS)\""
	@echo "                    the marked tests in an environment of yours; none may skip; docs/marked-tests.md"
	@echo "make update-newest  pins the newest releases of the day in requirements/newest.txt"
	@echo "make bench          every measurement of BENCHMARKS.md"

.venv/.ready: requirements/current.txt
.venv-newest/.ready: requirements/newest.txt
.venv-cerebras/.ready: requirements/cerebras.txt
.venv/.ready .venv-newest/.ready .venv-cerebras/.ready: %/.ready: setup.cfg
	$(PYTHON) -m venv $*
	$*/bin/$(PIP_INSTALL) -r $(filter requirements/%,$^)
	$*/bin/$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	touch $@

# The build for CPUs requires packages for sound and images, which no model of text needs. Its file lists all the others,
# so nothing has to be resolved.
.venv-vllm/.ready: requirements/vllm.txt setup.cfg
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/$(PIP_INSTALL) --no-deps -r $<
	$(@D)/bin/$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	touch $@

# Torch stays that of the current pins and is installed first, so that nothing else chooses its build.
update-newest: TORCH = $(shell grep '^torch==' requirements/current.txt)
update-newest:
	$(PYTHON) -m venv --clear build/newest
	build/newest/bin/$(PIP_INSTALL) $(TORCH)
	build/newest/bin/$(PIP_INSTALL) $(TORCH) setuptools -e ".[dev,tune,pipeline]"
	build/newest/bin/pip freeze --all --exclude pip --exclude cerebras_jais > build/newest.txt
	! grep -E '@|file:|://' build/newest.txt
	( echo "# The newest of everything but torch, which is that of current.txt; written by make update-newest." ; \
	  echo "# On a machine without a GPU, a CPU build of torch is enough." ; \
	  sed 's/+[^+]*$$//' build/newest.txt ) > requirements/newest.txt
	rm -rf build/newest build/newest.txt

demo: $(CURRENT)/.ready
	$(CURRENT)/bin/python runs/demo.py $(DEMO_ARGS)

test: .venv/.ready
test-newest: .venv-newest/.ready
test-cerebras: .venv-cerebras/.ready
test test-newest test-cerebras:
	OMP_NUM_THREADS=1 $(<D)/bin/python -m pytest -q -n $(PYTEST_JOBS) --dist worksteal

test-vllm: .venv-vllm/.ready
	OMP_NUM_THREADS=1 $(<D)/bin/python -m tests.marked vllm

test-marked:
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.marked --jobs $(MARKED_JOBS) $(MARKS)

format: $(CURRENT)/.ready
	$(CURRENT)/bin/ruff format .
	$(CURRENT)/bin/ruff check --fix .

lint: $(CURRENT)/.ready
	$(CURRENT)/bin/ruff format --check .
	$(CURRENT)/bin/ruff check .
	$(CURRENT)/bin/mypy

check: lint
	OMP_NUM_THREADS=1 $(CURRENT)/bin/python -m pytest -q -n $(PYTEST_JOBS) --dist worksteal -m "not slow"

bench: $(CURRENT)/.ready
	$(CURRENT)/bin/python benchmarks/training_speed.py
	$(CURRENT)/bin/python benchmarks/conversion.py --directory build/benchmark
	$(CURRENT)/bin/python benchmarks/conversion.py --directory build/benchmark --memory
	$(CURRENT)/bin/python benchmarks/conversations.py --directory build/conversations
	$(CURRENT)/bin/python benchmarks/evaluation.py

clean:
	rm -rf build demo_output .pytest_cache .mypy_cache .ruff_cache *.egg-info
