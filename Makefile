PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes
AUDIT := $(BIN)/pip-audit --disable-pip --progress-spinner off --timeout 3
LOCK = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url $(LOCK_FLAGS)
CHROMIUM ?= /usr/bin/chromium

.DEFAULT_GOAL := help
.PHONY: help install run dev test test-unit test-integration soak bench browser-test client-check lint audit format lock openapi migration migrate

help: ## Show what can be done
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/installed ## Install the locked versions of all dependencies into .venv

$(VENV)/installed: requirements-dev.lock
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --requirement requirements-dev.lock
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

soak: install ## Run the tests that can do more with far more: some fifteen minutes
	SOAK=1 $(BIN)/pytest -n 2 -v -m soak

bench: install ## Measure each route's CPU, of the service and of PostgreSQL, next to that of a bare Flask route
	$(BIN)/python -m tests.bench.routes --latency 150
	$(BIN)/python -m tests.bench.routes

browser-test: install ## Try every page in Chromium, at two widths: apt-get install chromium, or CHROMIUM=path
	@test -x "$(CHROMIUM)" || { echo "No browser at $(CHROMIUM): apt-get install chromium, or CHROMIUM=path" >&2; exit 1; }
	$(PIP_INSTALL) --requirement requirements-browser.lock
	CHROMIUM="$(CHROMIUM)" $(BIN)/pytest tests/browser

client-check: install ## Make clients of the document, in Python and TypeScript, and try them: needs Node.js 20 with npm
	@command -v npm >/dev/null || { echo "No npm: install Node.js 20 or later" >&2; exit 1; }
	$(PIP_INSTALL) --requirement requirements-clients.lock
	npm ci --prefix tests/clients --silent
	$(BIN)/pytest tests/clients

lint: install ## Check style, types and the locks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pip check --disable-pip-version-check
	@$(MAKE) --no-print-directory audit

# Where the database of vulnerabilities doesn't know the one of this old version, it can't be asked: what it says of the
# lock would mean nothing.
audit: install ## Look for known vulnerabilities in the locked versions
	@if echo "jinja2==2.4.1" | $(AUDIT) --no-deps --format json --requirement /dev/stdin 2>/dev/null | grep -q '"fix_versions"'; \
	then $(AUDIT) --require-hashes --requirement requirements-dev.lock --requirement requirements-browser.lock \
		--requirement requirements-clients.lock; \
	else echo "Not looked for known vulnerabilities: their database can't be reached from here."; fi

format: install ## Put the code into its style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: ## Write the locks anew from pyproject.toml, with uv; newest versions with LOCK_FLAGS=--upgrade
	$(LOCK) pyproject.toml --output-file requirements.lock
	$(LOCK) pyproject.toml --extra dev --constraint requirements.lock --output-file requirements-dev.lock
	$(LOCK) --group browser --constraint requirements-dev.lock --output-file requirements-browser.lock
	$(LOCK) --group clients --constraint requirements-dev.lock --output-file requirements-clients.lock

openapi: install ## Write openapi/openapi.json from the schemas
	$(BIN)/flask openapi write openapi/openapi.json

migration: install ## Write a new migration from the models: make migration name=add_something
	@test -n "$(name)" || { echo "Name it: make migration name=add_something" >&2; exit 1; }
	$(BIN)/flask db revision --autogenerate -m "$(name)"

migrate: install ## Bring the database of STRIPE_SERVICE_DATABASE_URL to the newest revision
	$(BIN)/flask db upgrade
