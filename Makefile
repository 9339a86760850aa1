# Needs Python >= 3.11 with venv, make and git. Package indexes are taken from the environment, as pip and uv do.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
UV := $(VENV)/uv-$(UV_VERSION)/bin/uv
STAMP := $(VENV)/synced
SCRIPTS := .ci/run $(wildcard *.sh scripts/* benchmarks/*.sh)
DOCKERFILES := $(wildcard Dockerfile)
LAYERS := tests/unit/test_layers.py

# Only the interpreter that made the virtualenv is used, and nothing outside the project is touched.
export UV_PYTHON_DOWNLOADS := never
# Where Python is told to write no bytecode, each of our processes would compile its libraries anew: seconds.
export UV_COMPILE_BYTECODE := 1
export UV_PROJECT_ENVIRONMENT := $(VENV)
# A company's own certificate authority is in the system's store, as pip and git expect it.
export UV_SYSTEM_CERTS ?= 1
unexport VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup test test-fast mutate bench-delivery bench-submit bench-memory storm demo sandbox check format lock clean

help: ## Show these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r target text; do \
		printf '  make %-14s %s\n' "$$target" "$$text"; done

setup: $(STAMP) ## Make or update .venv from uv.lock (a no-op when nothing has changed)

demo: setup ## Deliver generated files through real local servers, with live progress (KEEP=1 stays up)
	$(BIN)/ncr demo $(if $(KEEP),--keep)

sandbox: setup ## Start all servers, API, workers and Flower on free ports; Ctrl-C stops them
	$(BIN)/ncr sandbox

test: setup ## Run every test, on real servers (ARGS="-k name" is passed to pytest)
	scripts/install-servers
	$(BIN)/pytest $(ARGS)

test-fast: setup ## Run the unit tests only: seconds, no servers
	$(BIN)/pytest tests/unit $(ARGS)

mutate: setup ## Change the code that decides what runs, one place at a time: do tests notice? (ARGS=--all: every place, hours)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/mutate.py $(ARGS)

bench-delivery: setup ## Our deliveries beside the plain way and a shell pipeline (QUICK=1: a small run)
	benchmarks/install-tools.sh
	UV_PROJECT_ENVIRONMENT=$(VENV)/bench $(UV) sync --quiet --locked --only-group bench || echo "s5cmd is missing" >&2
	PYTHONPATH=tests QUICK=$(QUICK) ROUNDS=$(ROUNDS) $(BIN)/python benchmarks/delivery.py $(VENV)/bench/bin

bench-submit: setup ## How fast jobs are taken in, beside an API that calls Celery's delay (QUICK=1, ROUNDS=n, DB=postgresql)
	PYTHONPATH=tests QUICK=$(QUICK) ROUNDS=$(ROUNDS) DB=$(DB) $(BIN)/python benchmarks/submit.py

bench-memory: setup ## Jobs of unknown memory on a host of 4 GiB, beside Celery and Dask (root; QUICK=1, TRACES="a.csv.gz ...")
	UV_PROJECT_ENVIRONMENT=$(VENV)/bench $(UV) sync --quiet --locked --only-group bench
	PYTHONPATH=tests:tests/acceptance QUICK=$(QUICK) $(BIN)/python benchmarks/memory.py $(TRACES) --bench $(VENV)/bench/bin

storm: setup ## 10,000 jobs on a host of 1 GiB, liars among them, while their processes are killed (root; QUICK=1: 500 jobs)
	PYTHONPATH=tests:tests/acceptance QUICK=$(QUICK) $(BIN)/python benchmarks/storm.py

check: setup ## Formatting, lint, types, layers, shell scripts, Dockerfile, generated files
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest -q $(LAYERS)
	$(BIN)/shellcheck $(SCRIPTS)
	$(if $(DOCKERFILES),$(BIN)/hadolint $(DOCKERFILES))
	@$(call requirements) | cmp -s - requirements.txt || { echo "requirements.txt is stale: make lock" >&2; exit 1; }
	@$(call env_sample) | cmp -s - env_sample || { echo "env_sample is stale: make lock" >&2; exit 1; }
	@$(call settings_table) | cmp -s - docs/settings.md || { echo "docs/settings.md is stale: make lock" >&2; exit 1; }

format: setup ## Format, and mend what the linter can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: | $(UV) ## Update uv.lock for pyproject.toml, and all that is generated: requirements.txt, env_sample, docs/settings.md
	$(UV) lock
	$(MAKE) setup
	$(call requirements) > requirements.txt
	$(call env_sample) > env_sample
	$(call settings_table) > docs/settings.md

clean: ## Remove all that these targets made, .venv included
	rm -rf $(VENV) .sandbox mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -prune -exec rm -rf {} +

requirements = $(UV) export --quiet --locked --no-dev --no-emit-project --no-header
env_sample = $(BIN)/python -c 'from ncr_worker.settings import env_sample; print(env_sample(), end="")'
settings_table = $(BIN)/python -c 'from ncr_worker.settings import settings_table; print(settings_table(), end="")'

$(STAMP): pyproject.toml uv.lock | $(UV)
	$(UV) sync --quiet --locked --all-extras
	@touch $@

$(UV):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make setup PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(VENV)/uv-$(UV_VERSION) uv==$(UV_VERSION)
