"""The one version: where it is read from, and where it is shown."""

import json
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from flask import Flask

from app import version
from app.config import Settings
from app.version import VERSION, find_version
from tests.cli.processes import Command
from tests.web import WebProcess

ROOT = Path(__file__).parents[1]
HERE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> str:
    """As if version 9.9.9 were installed."""
    monkeypatch.setattr(version.importlib.metadata, "version", {"stripe-service": "9.9.9"}.__getitem__)
    return "9.9.9"


class TestFindVersion:
    def test_it_takes_that_of_the_checkout_whatever_is_installed(self, installed: str) -> None:
        assert find_version(ROOT) == HERE

    def test_it_takes_the_installed_one_where_no_checkout_is(self, installed: str, tmp_path: Path) -> None:
        assert find_version(tmp_path) == installed

    @pytest.mark.parametrize("other", ['[project]\nname = "other"\nversion = "1"', "[tool.ruff]"])
    def test_it_takes_the_installed_one_beside_a_file_of_another_project(
        self, installed: str, tmp_path: Path, other: str
    ) -> None:
        (tmp_path / "pyproject.toml").write_text(other)

        assert find_version(tmp_path) == installed

    def test_it_raises_where_there_is_neither(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(version, "NAME", "no-such-project")

        with pytest.raises(PackageNotFoundError):
            find_version(tmp_path)


class TestVersion:
    def test_it_is_that_of_pyproject(self) -> None:
        assert VERSION == HERE

    def test_the_document_has_it(self) -> None:
        assert json.loads((ROOT / "openapi" / "openapi.json").read_text())["info"]["version"] == HERE

    def test_the_changelog_has_it(self) -> None:
        assert f"## [{HERE}]" in (ROOT / "CHANGELOG.md").read_text()

    def test_it_is_in_the_first_lines_of_the_log_of_the_web(
        self, settings: Settings, environment: dict[str, str]
    ) -> None:
        with WebProcess.start(environment | {"WEB_CONCURRENCY": "1"}) as web:
            messages = [json.loads(line)["message"] for line in web.printed().splitlines()]

        assert f"stripe-service {HERE}" in messages[: messages.index("GET /health 200")]

    def test_the_worker_begins_with_it(self, environment: dict[str, str], app: Flask) -> None:
        with Command.start("worker", environment=environment) as worker:
            worker.wait_until(worker.logged, what="its first line")
            assert worker.logged()[0] == f"stripe-service {HERE}"
