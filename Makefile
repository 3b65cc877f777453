# Everything a contributor runs. `make demo` and `make test` need python >= 3.11 and nothing else:
# they make .venv and install into it what constraints.txt pins.
# With an environment of your own: `make quick PY=python`.

VENV   ?= .venv
PY     ?= $(VENV)/bin/python
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
OUT    ?= out

# Our own .venv is made on demand; an interpreter given as PY=... is taken as it is.
ifeq ($(PY),$(VENV)/bin/python)
TEST_ENV := $(VENV)/.test
DEV_ENV  := $(VENV)/.dev
endif

# Two workers, each with half of the tests, that take over from each other at the end.
WORKERS ?= 2
# One thread for each worker: two that share the cores slow each other down.
PYTEST := -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint quick check bench gpu gallery notebooks docs nightly dist lowest clean

help:           ## Say what there is.
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## */:\t/' | expand -t 12

venv: $(TEST_ENV)  ## Make .venv with the package, its tests and examples.

# torch first and alone: its version is then settled before anything else asks for one.
$(VENV)/.test: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python >= 3.11 is needed")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt torch
	$(VENV)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(VENV)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

demo: $(TEST_ENV)  ## The main experiment; figures in out/sinus.
	$(PY) -m lightning_examples.sinus --out $(OUT)/sinus

test quick check: export OMP_NUM_THREADS ?= 1

test: $(TEST_ENV)  ## The whole test suite (nightly drills aside).
	$(PY) $(PYTEST) -m "not nightly"

lint: $(DEV_ENV)  ## ruff, mypy, spelling and prose.
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m codespell_lib .
	$(PY) .ci/prose

quick: lint     ## lint, and the tests that are not slow: under a minute.
	$(PY) $(PYTEST) -q -m "not slow and not nightly"

check: lint docs  ## lint, docs and the whole test suite: what a change must pass.
	$(PY) $(PYTEST) -m "not nightly"

bench: $(TEST_ENV)  ## Benchmarks: under 30 minutes on two cores.
	$(PY) -m benchmarks

gpu: $(TEST_ENV)  ## The contract tests and step times on a GPU; says so where there is none.
	$(PY) -m benchmarks.gpu

gallery: $(TEST_ENV)  ## Run every example and rewrite docs/gallery: under 20 minutes on two cores.
	$(PY) -m lightning_examples.gallery --out $(OUT)/gallery --to docs/gallery

notebooks: $(DEV_ENV)  ## Run the notebooks in docs/tutorials and keep their outputs in them.
	$(PY) docs/_ext/run_notebooks.py docs/tutorials/*.ipynb

docs: $(DEV_ENV)  ## The documentation, in docs/_build/html.
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

nightly: $(TEST_ENV)  ## Heavy drills.
	$(PY) -m pytest -m nightly

dist: $(DEV_ENV)  ## Wheel and sdist, and the README's lines where only the wheel is installed.
	PYTHON=$(PY) .ci/release dist

lowest:         ## The quick tests with the oldest versions that pyproject.toml allows (gigabytes).
	.ci/lowest .venv-lowest

clean:          ## Remove what the targets above made.
	rm -rf $(VENV) .venv-lowest $(OUT) docs/_build dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
