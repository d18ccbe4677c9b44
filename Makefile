# Everything a developer or a CI machine does, each target by itself. `make` alone lists them.
# Options: PYTHON=/path/to/python3.12, ARGS="passed on to the command".

SHELL := /bin/sh
BIN := .venv/bin
ARGS ?=
# Bytecode is kept, as machine code is: else each of some hundred processes would compile all that it imports, for seconds.
unexport PYTHONDONTWRITEBYTECODE
# No test run may hang for ever: one test is bounded in pyproject.toml, each whole run here.
PYTEST := $(BIN)/pytest --session-timeout=3600
LOCK := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url $(if $(UPGRADE),--upgrade)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test lint format types contracts search unit integration coverage bench up down lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv as locked (every other target does it first)
	$(eval missing := $(shell PYTHON="$(PYTHON)" .ci/setup --check 2>&1))$(if $(missing),$(error $(missing)))
	@PYTHON="$(PYTHON)" .ci/setup

demo: setup ## replay the flights of 2013 through the whole loop
	@$(BIN)/driftline demo $(ARGS)

# $(call part,NAME,COMMAND): run it, and name it when it fails.
define part
	@echo "== $(1)"
	@$(2) || { echo "make: $(1) failed; run it alone with 'make $(1)'" >&2; exit 1; }
endef

test: setup ## every check: lint, types, contracts, unit, integration
	$(call part,lint,$(MAKE) --no-print-directory lint)
	$(call part,types,$(MAKE) --no-print-directory types)
	$(call part,contracts,$(MAKE) --no-print-directory contracts)
	$(call part,unit,$(MAKE) --no-print-directory unit)
	$(call part,integration,$(MAKE) --no-print-directory integration)
	@echo "make test: all parts passed"

lint: setup ## ruff: rules and format
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check . >&2; exit 1; }

format: setup ## rewrite the code as ruff formats it
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

types: setup ## mypy, strict
	@$(BIN)/mypy

contracts: setup ## import-linter: who may import whom
	@$(BIN)/lint-imports

search: setup ## property tests with examples that nobody has seen yet (ARGS="-k name")
	@$(BIN)/pytest -q -n auto -m "not integration and not bench" --hypothesis-profile=search tests $(ARGS)

unit: setup ## unit tests, laws, properties, examples in docstrings: no broker, no engine
	@$(PYTEST) -q -n auto -m "not integration and not bench" --doctest-modules schemas detectors streams deploy tests $(ARGS)

# A worker that dies is not replaced: pytest-xdist with --dist loadfile would then wait for ever.
integration: setup ## tests on a real Kafka and a real ClickHouse engine, in one process
	@$(PYTEST) -q -n 2 --dist loadfile --max-worker-restart=0 -m "integration and not bench" tests $(ARGS)

coverage: setup ## all tests, with lines and branches not reached
	@$(BIN)/coverage run -m pytest -q -m "not bench" tests
	@$(BIN)/coverage report

bench: setup ## figures, one JSON line each
	@$(BIN)/python -m tests.bench $(ARGS)
	@$(BIN)/python -m tests.bench.detectors

up: setup ## start Kafka, ClickHouse and every service here
	@$(BIN)/driftline up $(ARGS)

down: setup ## stop what `make up` started
	@$(BIN)/driftline down $(ARGS)

lock: setup ## resolve the locks again (UPGRADE=1: to the newest versions)
	@$(LOCK) --extra alibi --extra local --extra demo --extra s3 --extra cpu --group dev -o requirements/dev.txt pyproject.toml
	@$(LOCK) -c requirements/dev.txt -o requirements/tools.txt requirements/tools.in
	@$(LOCK) -o requirements/peers.txt requirements/peers.in
	@$(LOCK) --extra training --extra s3 --extra cpu -c requirements/dev.txt -o requirements/runtime-cpu.txt pyproject.toml
	@$(LOCK) --extra training --extra s3 --extra gpu -c requirements/dev.txt -o requirements/runtime-gpu.txt pyproject.toml

clean: ## remove what make and the tools left behind
	@rm -rf .venv .venv-peers .coverage htmlcov build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
