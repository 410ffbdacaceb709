PYTHON ?= python3.11
VENV := .venv
# Tools are run as modules: the scripts beside them name the folder in which .venv was made, and it may have moved.
PY := $(VENV)/bin/python -m
PIP_INSTALL := $(PY) pip install --disable-pip-version-check --require-hashes
AUDIT := $(PY) pip_audit --disable-pip --progress-spinner off --timeout 3
LOCK = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url $(LOCK_FLAGS)
CHROMIUM ?= /usr/bin/chromium

.DEFAULT_GOAL := help
.PHONY: help install run dev flask reset clean test test-unit test-integration soak bench browser-test client-check lint audit \
	format lock openapi migration migrate

help: ## Show what can be done
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/installed ## Install the locked versions of all dependencies into .venv

$(VENV)/installed: requirements-dev.lock
	$(PYTHON) -m venv $(VENV)
	@printf 'Installing %s packages into $(VENV), once: ' "$$(grep -c '^[a-z].*==' requirements-dev.lock)"
	@{ $(PIP_INSTALL) --requirement requirements-dev.lock || echo "failed"; } | awk ' \
		/^Collecting / { printf "."; fflush() } \
		/^Installing / { printf " fetched, unpacking ..."; fflush() } \
		/^failed$$/ { failed = 1 } \
		END { print failed ? " failed" : " done"; exit failed }'
	@touch $@

run: install ## Run everything here: PostgreSQL, the stand-ins, the service and its worker
	@exec $(PY) app.sandbox.run

dev: install ## The same, and start all of it again when a file changes
	@exec $(PY) app.sandbox.run --reload

flask: install ## Run a flask command on the data of `make run`: make flask ARGS="payments stuck"
	@$(PY) app.sandbox.command $(ARGS)

reset: install ## End what `make run` has started, and forget its data
	@$(PY) app.sandbox.reset

clean: ## Remove what can be made anew; the data of `make run` stays
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache .schemathesis tests/browser/screenshots
	find . -name __pycache__ -not -path './.sandbox/*' -prune -exec rm -rf {} +

test: install ## Run all tests
	$(PY) pytest -n 2

test-unit: install ## Run the tests that need neither PostgreSQL nor the stand-ins
	$(PY) pytest -n 2 -m "not integration"

test-integration: install ## Run the tests on PostgreSQL and the stand-ins
	$(PY) pytest -n 2 -m integration

soak: install ## Run the tests that can do more with far more, which takes long
	SOAK=1 $(PY) pytest -n 2 -v -m soak

bench: install ## Measure each route's CPU, of the service and of PostgreSQL, next to that of a bare Flask route
	$(PY) tests.bench.routes --latency 150
	$(PY) tests.bench.routes

browser-test: install ## Try every page in Chromium, at two widths: apt-get install chromium, or CHROMIUM=path
	@test -x "$(CHROMIUM)" || { echo "No browser at $(CHROMIUM): apt-get install chromium, or CHROMIUM=path" >&2; exit 1; }
	$(PIP_INSTALL) --quiet --requirement requirements-browser.lock
	CHROMIUM="$(CHROMIUM)" $(PY) pytest tests/browser

client-check: install ## Make clients of the document, in Python and TypeScript, and try them: needs Node.js 20 with npm
	@command -v npm >/dev/null || { echo "No npm: install Node.js 20 or later" >&2; exit 1; }
	$(PIP_INSTALL) --requirement requirements-clients.lock
	npm ci --prefix tests/clients --silent
	$(PY) pytest tests/clients

lint: install ## Check style, types and the locks
	$(PY) ruff check
	$(PY) ruff format --check
	$(PY) mypy
	$(PY) pip check --disable-pip-version-check
	@$(MAKE) --no-print-directory audit

# Where the database of vulnerabilities doesn't know the one of this old version, it can't be asked: what it says of the
# lock would mean nothing.
audit: install ## Look for known vulnerabilities in the locked versions
	@if echo "jinja2==2.4.1" | $(AUDIT) --no-deps --format json --requirement /dev/stdin 2>/dev/null | grep -q '"fix_versions"'; \
	then $(AUDIT) --require-hashes --requirement requirements-dev.lock --requirement requirements-browser.lock \
		--requirement requirements-clients.lock; \
	else echo "Not looked for known vulnerabilities: their database can't be reached from here."; fi

format: install ## Put the code into its style
	$(PY) ruff check --fix
	$(PY) ruff format

lock: ## Write the locks anew from pyproject.toml, with uv; newest versions with LOCK_FLAGS=--upgrade
	$(LOCK) pyproject.toml --output-file requirements.lock
	$(LOCK) pyproject.toml --extra dev --constraint requirements.lock --output-file requirements-dev.lock
	$(LOCK) --group browser --constraint requirements-dev.lock --output-file requirements-browser.lock
	$(LOCK) --group clients --constraint requirements-dev.lock --output-file requirements-clients.lock

openapi: install ## Write openapi/openapi.json from the schemas
	$(PY) flask openapi write openapi/openapi.json

# On the sandbox's database whatever the environment names: what is compared has to be at the newest revision.
migration: export STRIPE_SERVICE_DATABASE_URL =
migration: install ## Write a new migration from the models: make migration name=add_something
	@test -n "$(name)" || { echo "Name it: make migration name=add_something" >&2; exit 1; }
	@$(PY) app.sandbox.command db upgrade
	@$(PY) app.sandbox.command db revision --autogenerate -m "$(name)"

migrate: install ## Bring the database of STRIPE_SERVICE_DATABASE_URL to the newest revision
	$(PY) flask db upgrade
