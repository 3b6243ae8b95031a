# Every target that a person or CI needs; `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
LOCKS := $(wildcard deploy/requirements*.lock)
PIN := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet

.PHONY: help install up demo doctor check format test test-containers test-faults test-image bench audit lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## Create .venv and install the hash-pinned lock file

.venv/installed: deploy/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Boxoffice needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/tested: .venv/installed deploy/requirements-test.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/requirements-test.lock
	@touch $@

up: install ## Start everything here: NATS, Postgres and every service behind one address
	@$(BIN)/boxoffice up $(ARGS)

demo: install ## Play a whole sale against the running system
	@$(BIN)/boxoffice demo $(ARGS)

doctor: install ## Say what is wrong with this setup and how to mend it
	@$(BIN)/boxoffice doctor $(ARGS)

check: .venv/tested ## Lint, types, who may import whom, and whether recorded events can still be read
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/boxoffice events compatible --recorded tests/corpus

format: .venv/tested ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A run starts hundreds of processes, which would each compile the code anew.
test test-containers test-faults test-image: export PYTHONDONTWRITEBYTECODE =

test: .venv/tested ## Unit, integration, system and browser tests, on real servers
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test-containers: .venv/tested ## The integration tests on the official images of NATS and Postgres (needs a Docker engine)
	$(BIN)/python -m pytest --containers -n 4 --dist loadfile --no-loadscope-reorder tests/integration $(ARGS)

test-faults: .venv/tested ## The long fault run: every process killed in turn under load
	$(BIN)/python -m pytest -m faults

test-image: .venv/tested ## The steps of the Dockerfile, and every service from what they make (needs the package index)
	$(BIN)/python -m pytest -m image

bench: .venv/tested ## Measure both sides of every promise in one run
	$(BIN)/python -m tests.benchmarks $(ARGS)

audit: .venv-audit/installed ## Ask PyPI whether what is pinned has known vulnerabilities (needs the internet)
	@.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off $(LOCKS:%=--requirement %) || \
	{ echo "make audit: not all that is pinned is known to be sound; above is why."; \
	echo "A vulnerable version: raise it with \`make lock\`. No answer, or \"not found on PyPI\": nothing is known of it;"; \
	echo "the package index has to answer for each version in JSON here, and a mirror often has no such pages."; exit 1; }

.venv-audit/installed: deploy/requirements-audit.lock
	@test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/requirements-audit.lock
	@touch $@

lock: ## Pin the dependencies again (needs uv)
	$(PIN) --upgrade pyproject.toml --extra embedded --extra build -o deploy/requirements.lock
	$(PIN) --upgrade pyproject.toml --all-extras -c deploy/requirements.lock -o deploy/requirements-test.lock
	$(PIN) --upgrade pyproject.toml -c deploy/requirements.lock -o deploy/requirements-image.lock
	$(PIN) --upgrade pyproject.toml --extra dev -c deploy/requirements-test.lock -o deploy/requirements-dev.lock
	printf "hatchling\neditables\n" | $(PIN) --upgrade - -c deploy/requirements.lock -o deploy/requirements-build.lock
	echo pip-audit | $(PIN) --upgrade - -o deploy/requirements-audit.lock

clean: ## Remove the virtual environment and caches (not .boxoffice, your data)
	rm -rf .venv .venv-audit .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
