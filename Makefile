# Needs Python 3.11 or 3.12, pip and make; everything else goes into .venv, once.
#   make demo PYTHON=python3.12              another interpreter
#   make demo MODEL=susnato/clvp_dev         real weights instead of the random ones
#   make test PYTEST_ARGS="tests/clvp -k mel"
#   make bench BENCH_ARGS="--size small --tokens 16"    a minute instead of half an hour

PYTHON ?= python3
VENV ?= .venv
MODEL ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
PIP_INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt
INSTALLED := $(VENV)/.installed
INSTALLED_MEASURES := $(VENV)/.installed-measures
INSTALLED_TEST := $(VENV)/.installed-test
# The English model is in the vendor's npm package, its vocabulary in the one for Python.
MOONSHINE := @moonshine-ai/moonshine-js@0.1.29
MOONSHINE_FILES := package/dist/model/tiny/quantized

# Ray starts one process per actor; more BLAS threads than cores make all of them slower, above all those that
# wait for each other in a loop.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE RAY_USAGE_STATS_ENABLED=0

# One process for the tests that start Ray, another for all others (tests/conftest.py).
SIDE_BY_SIDE := -n 2 --dist loadgroup --quiet

.DEFAULT_GOAL := help
.PHONY: help install measures demo test test-proofs check test-kernels bench format clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 13) else \
	    "Python 3.11 or 3.12 is needed, $(PYTHON) is %d.%d: run make with PYTHON=python3.11" % v)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the pinned dependencies into $(VENV) (some gigabytes, a few minutes, once)"
	$(PIP_INSTALL) --editable .
	@touch $@

# Of some packages only the weights and networks are used, not what they depend on (a compiler, numba, a sound card).
$(INSTALLED_MEASURES): $(INSTALLED)
	@echo "Installing what measures listen with into $(VENV)"
	$(PIP_INSTALL) --editable '.[measures]'
	$(PIP_INSTALL) --no-deps Resemblyzer distillmos xls-r-sqa moonshine-voice
	@if command -v npm >/dev/null; then \
	    mkdir -p $(VENV)/share/moonshine-tiny && fetched=$$(mktemp -d) && \
	    npm pack --silent --pack-destination $$fetched $(MOONSHINE) >/dev/null && \
	    tar -xzf $$fetched/*.tgz -C $(VENV)/share/moonshine-tiny --strip-components 5 $(MOONSHINE_FILES) && rm -r $$fetched; \
	else echo "There is no npm, so no recognizer was fetched: see docs/measures.md"; fi
	@touch $@

$(INSTALLED_TEST): $(INSTALLED_MEASURES)
	@echo "Installing the test dependencies into $(VENV)"
	$(PIP_INSTALL) --editable '.[test]'
	@touch $@

install: $(INSTALLED)  ## make .venv with the project and its pinned dependencies

measures: $(INSTALLED_MEASURES)  ## install what measures speech: a recognizer, voices, opinions (docs/measures.md)

demo: $(INSTALLED)  ## run the main job on the embedded clips and print the ranked table
	@RAY_USAGE_STATS_ENABLED=0 $(BIN)/python -m jobs.demo $(if $(MODEL),--model $(MODEL))

test: $(INSTALLED_TEST)  ## run the tests
	$(TEST_ENV) $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not proof" $(PYTEST_ARGS)

test-proofs: $(INSTALLED_TEST)  ## run what takes longer: clusters that grow, jobs that are submitted, runs that are killed
	$(TEST_ENV) $(BIN)/python -m pytest -m proof $(PYTEST_ARGS)
	$(TEST_ENV) $(BIN)/python -m tests.soak
	$(TEST_ENV) $(BIN)/python -m tests.soak --s3

check: $(INSTALLED_TEST)  ## the quick loop: style, types, imports, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(TEST_ENV) $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not proof" $(PYTEST_ARGS)

test-kernels: $(INSTALLED_TEST)  ## run the tests that depend on arithmetic as other processors would
	$(TEST_ENV) $(BIN)/python -m tests.kernels

bench: $(INSTALLED_TEST)  ## run the benchmarks and print their figures
	$(BIN)/python -m tests.benchmarks $(BENCH_ARGS)

format: $(INSTALLED_TEST)  ## format the code and sort the imports
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

clean:  ## remove caches and results, keep .venv
	rm -rf build dist *.egg-info demo-output bench-output .*_cache .hypothesis
	find clvp pipeline jobs tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
