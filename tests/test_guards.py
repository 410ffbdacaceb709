"""What keeps the house as it is."""

import ast
import json
import re
from pathlib import Path
from typing import ClassVar

import pytest
from flask import Flask
from flask_migrate import Migrate

from app import create_app
from app.auth import PUBLIC_ENDPOINTS
from app.config import Settings

ROOT = Path(__file__).parents[1]


def imports_of(path: Path) -> set[str]:
    """The modules that a file names in its imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(pattern: str) -> list[Path]:
    return sorted(path for path in (ROOT / "app").glob(pattern) if "sandbox" not in path.parts)


def starts_with(imports: set[str], *prefixes: str) -> set[str]:
    return {name for name in imports if any(name == p or name.startswith(f"{p}.") for p in prefixes)}


class TestArrows:
    """Imports point one way, between the layers and between the packages of services."""

    # What each package of services may import of the others; below them are config, errors, logs, metrics, models.
    BELOW: ClassVar = {
        "upstreams": set(),
        "events": {"upstreams"},
        "operations": {"events", "upstreams"},
        "customers": {"operations", "events", "upstreams"},
        "payments": {"customers", "operations", "events", "upstreams"},
        "subscriptions": {"operations", "events", "upstreams"},
        "reconciliation": {"payments", "customers", "operations", "events", "upstreams"},
        "reports": {"events"},
        "webhook_endpoints": {"reconciliation", "operations", "events", "upstreams"},
        "notifications": {"reports", "events", "upstreams"},
        "access": set(),
        "operators": {"notifications", "operations", "reports", "events", "upstreams"},
    }

    @pytest.mark.parametrize("name", ["config.py", "errors.py"])
    def test_config_and_errors_import_nothing_of_ours(self, name: str) -> None:
        assert not starts_with(imports_of(ROOT / "app" / name), "app")

    @pytest.mark.parametrize("name", ["models.py", "extensions.py", "database.py"])
    def test_the_tables_know_neither_http_nor_the_document(self, name: str) -> None:
        imports = imports_of(ROOT / "app" / name)
        assert not starts_with(imports, "flask", "flask_smorest", "marshmallow", "app.web", "app.schemas")

    @pytest.mark.parametrize("path", files_of("blueprints/*.py"), ids=lambda p: p.name)
    def test_a_blueprint_knows_no_sql_and_no_stripe(self, path: Path) -> None:
        assert not starts_with(imports_of(path), "sqlalchemy", "stripe", "app.extensions", "app.services.upstreams")

    @pytest.mark.parametrize("path", files_of("services/**/*.py"), ids=lambda p: str(p.relative_to(ROOT)))
    def test_a_service_knows_no_flask(self, path: Path) -> None:
        outside = ("flask", "app.blueprints", "app.schemas", "app.web", "app.request_context", "app.cli")
        assert not starts_with(imports_of(path), *outside)

    @pytest.mark.parametrize("package", BELOW)
    def test_a_package_of_services_imports_only_what_is_below_it(self, package: str) -> None:
        above = {f"app.services.{other}" for other in self.BELOW if other not in self.BELOW[package] | {package}}
        for path in files_of(f"services/{package}/*.py"):
            assert not starts_with(imports_of(path), *above), path

    def test_every_package_of_services_has_its_place(self) -> None:
        packages = {path.parent.name for path in files_of("services/*/__init__.py")}
        assert packages == set(self.BELOW)

    @pytest.mark.parametrize("path", files_of("services/upstreams/*.py"), ids=lambda p: p.name)
    def test_a_client_knows_no_database(self, path: Path) -> None:
        assert not starts_with(imports_of(path), "sqlalchemy", "app.models", "app.extensions", "app.database")

    def test_the_projection_knows_neither_database_nor_network(self) -> None:
        imports = imports_of(ROOT / "app" / "services" / "events" / "projection.py")
        pure = ("facts", "stripe_object", "stripe_event")
        known = {"app.models", *(f"app.services.events.{name}" for name in pure)}
        assert not {name for name in starts_with(imports, "app") if not starts_with({name}, *known)}
        assert not starts_with(imports, "sqlalchemy", "requests", "urllib3", "stripe")

    @pytest.mark.parametrize("path", files_of("schemas/*.py"), ids=lambda p: p.name)
    def test_a_schema_never_queries(self, path: Path) -> None:
        assert not starts_with(imports_of(path), "sqlalchemy", "app.services", "app.extensions")

    @pytest.mark.parametrize("path", files_of("**/*.py"), ids=lambda p: str(p.relative_to(ROOT)))
    def test_production_never_imports_the_stand_ins(self, path: Path) -> None:
        top_level = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
        assert not [node.module for node in top_level if (node.module or "").startswith("app.sandbox")]

    @pytest.mark.parametrize("path", files_of("**/*.py"), ids=lambda p: str(p.relative_to(ROOT)))
    def test_only_settings_read_the_environment(self, path: Path) -> None:
        if path.name != "config.py":
            assert "environ" not in path.read_text().replace("from_environment", "").replace("the environment", "")


class TestRoutes:
    def test_every_route_asks_for_a_key_or_is_listed_as_public(self) -> None:
        app = create_app(Settings.from_environment({}))
        client = app.test_client()
        for rule in app.url_map.iter_rules():
            if rule.endpoint in PUBLIC_ENDPOINTS:
                continue
            url = re.sub(r"<[^>]+>", "x", rule.rule)
            for method in rule.methods or ():
                assert client.open(url, method=method).status_code == 401, rule

    def test_every_public_endpoint_exists(self) -> None:
        app = create_app(Settings.from_environment({}))
        assert {rule.endpoint for rule in app.url_map.iter_rules()} >= PUBLIC_ENDPOINTS


class TestDocument:
    def test_the_committed_one_is_current(self) -> None:
        app = create_app(Settings.from_environment({}))
        document = app.extensions["flask-smorest"]["apis"][""]["ext_obj"].spec.to_dict()
        committed = json.loads((ROOT / "openapi" / "openapi.json").read_text())
        assert json.loads(json.dumps(document)) == committed, "run `make openapi` and commit the result"

    def test_the_served_one_is_the_committed_one(self, app: Flask) -> None:
        with app.test_client().get("/openapi.json") as served:
            assert served.mimetype == "application/json"
            assert served.json == json.loads((ROOT / "openapi" / "openapi.json").read_text())

    def test_every_route_is_described(self) -> None:
        document = json.loads((ROOT / "openapi" / "openapi.json").read_text())
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if method in ("get", "post"):
                    assert operation.get("summary"), (method, path)
                    assert operation.get("responses"), (method, path)


class TestLocks:
    @pytest.mark.parametrize(
        "path", ["tests/clients/package-lock.json", *sorted(path.name for path in ROOT.glob("requirements*.lock"))]
    )
    def test_a_lock_names_no_registry(self, path: str) -> None:
        """Each machine has its own; what a package holds is told by its hash."""
        assert "://" not in re.sub(r'"url": "[^"]+"', "", (ROOT / path).read_text())


class TestMigrations:
    def test_they_say_what_the_models_say(self, app: Flask) -> None:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        migrate: Migrate = app.extensions["migrate"]
        with app.app_context(), migrate.db.engine.connect() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, migrate.db.metadata) == []

    def test_a_fresh_database_is_ready(self, app: Flask) -> None:
        response = app.test_client().get("/health/ready")
        assert response.json == {"status": "ok", "checks": {"database": "ok", "migrations": "ok"}}


class TestReadme:
    def test_its_make_targets_exist(self) -> None:
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text())) <= targets

    def test_its_flask_commands_exist(self) -> None:
        commands = set(create_app(Settings.from_environment({})).cli.commands) | {"db", "routes", "shell", "run"}
        assert set(re.findall(r"\bflask ([a-z]+)", (ROOT / "README.md").read_text())) <= commands
