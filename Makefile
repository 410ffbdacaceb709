PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install run dev test test-unit test-integration lint format openapi migration migrate

help: ## Show what can be done
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/installed ## Install the locked versions of all dependencies into .venv

$(VENV)/installed: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@touch $@

run: install ## Run everything here: PostgreSQL, the stand-ins, the service and its worker
	@exec $(BIN)/python -m app.sandbox.run

dev: install ## The same, and reload on change
	@exec $(BIN)/python -m app.sandbox.run --reload

test: install ## Run all tests
	$(BIN)/pytest -n 2

test-unit: install ## Run the tests that need neither PostgreSQL nor the stand-ins
	$(BIN)/pytest -n 2 -m "not integration"

test-integration: install ## Run the tests on PostgreSQL and the stand-ins
	$(BIN)/pytest -n 2 -m integration

lint: install ## Check style, types and the lock
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pip check --disable-pip-version-check

format: install ## Put the code into its style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

openapi: install ## Write openapi/openapi.json from the schemas
	$(BIN)/flask openapi write openapi/openapi.json

migration: install ## Write a new migration from the models: make migration name=add_something
	@test -n "$(name)" || { echo "Name it: make migration name=add_something" >&2; exit 1; }
	$(BIN)/flask db revision --autogenerate -m "$(name)"

migrate: install ## Bring the database of STRIPE_SERVICE_DATABASE_URL to the newest revision
	$(BIN)/flask db upgrade
