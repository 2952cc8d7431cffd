# Two commands do everything, set-up included: `make demo` and `make test`.
# PYTHON picks the interpreter (3.11 to 3.13); by default the newest of these on the PATH.

SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
OK    := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c '$(OK)' 2>/dev/null && { echo $$p; break; }; done)
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-mlflow lint format bench docs clean tools

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

$(VENV)/made:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 found"; \
		echo "hint: apt-get install python3 python3-venv, or make PYTHON=/path/to/python3.12"; exit 3; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
		echo "error: $(PYTHON) cannot make a virtual environment"; \
		echo "hint: apt-get install python3-venv"; rm -rf $(VENV); exit 3; }
	@touch $@

$(VENV)/demo: $(VENV)/made pyproject.toml
	@echo "Installing edgeml and what the demo needs into $(VENV) (once) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/dev: $(VENV)/made pyproject.toml
	@echo "Installing edgeml and its developers' tools into $(VENV) (once) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/demo

demo: $(VENV)/demo ## Convert, serve, roll out, roll back: the whole job, in about two minutes
	@$(BIN)/edgeml demo --out build/demo

tools: $(VENV)/dev ## Install what the tests need and pip cannot bring
	@$(BIN)/python -m tests.support.tools

# loadfile, not loadgroup: pytest-xdist 3.8 does not see groups with pytest 9.2.
test: tools ## Run all tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# A real MLflow server is too heavy for the developers' environment (record 20): it gets its own.
test-mlflow: $(VENV)/dev ## Run the tests of tracking against a real MLflow server
	@test -x build/mlflow/bin/mlflow || { $(BIN)/python -m venv build/mlflow && \
		build/mlflow/bin/pip install --quiet --disable-pip-version-check 'mlflow>=3'; }
	@$(BIN)/python -m tests.support.mlflow_real build/mlflow/bin/mlflow

lint: $(VENV)/dev ## Check style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/dev ## Put the code into its form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/dev ## Run the benchmarks; each prints a table, and JSON into build/bench
	@mkdir -p build/bench
	@for b in benchmarks/[a-z]*.py; do echo "== $$b"; \
		$(BIN)/python $$b --json build/bench/$$(basename $$b .py).json || exit 1; done

docs: $(VENV)/dev ## Build the documentation; warnings are errors
	@$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

clean: ## Remove what was built (and the environment)
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
