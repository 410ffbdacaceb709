"""What `pip install .` installs: all of the service, which then runs from any directory, with nothing set."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.version import VERSION
from tests.web import clean_environment

ROOT = Path(__file__).parents[1]
SOURCES = ("app", "migrations", "openapi")
FILES = ("pyproject.toml", "README.md", "LICENSE", "wsgi.py")
PIN = re.compile(r"^([a-z0-9.-]+)==(\S+)((?: .*)?(?:\\\n    --hash=\S+ ?)+)", re.MULTILINE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves files beside what it reads."""
    copy, built = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("built")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(built)],
        cwd=copy,
        env=clean_environment(),
        check=True,
        capture_output=True,
        timeout=60,
    )
    (found,) = built.iterdir()
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which it lies as in `site-packages`."""
    directory = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(directory)
    return directory


def sources() -> Iterator[str]:
    for name in SOURCES:
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                yield str(path.relative_to(ROOT))


class TestWheel:
    def test_it_holds_every_file_and_nothing_else(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as packed:
            held = {name for name in packed.namelist() if ".dist-info/" not in name}

        assert held == {*sources(), "wsgi.py"}

    @pytest.mark.parametrize(
        ("arguments", "printed"),
        [
            (["flask", "version"], f"stripe-service {VERSION}\n"),
            (["flask", "db", "heads"], r"\d{4} \(head\)\n"),
            (["gunicorn", "--check-config", "-c", "python:app.gunicorn_config", "wsgi:app"], ""),
        ],
        ids=["flask version", "flask db heads", "gunicorn"],
    )
    def test_it_runs_from_an_empty_directory(
        self, installed: Path, tmp_path: Path, arguments: list[str], printed: str
    ) -> None:
        settings = dict.fromkeys(("KEY_SERVICE_URL", "RUNS_SERVICE_URL"), "http://unused.test")
        secrets = {f"{name}_SERVICE_API_KEY": "k" for name in ("STRIPE", "KEY", "RUNS")}
        named = {"STRIPE_SERVICE_DATABASE_URL": "postgresql://db.test/payments", "STRIPE_WEBHOOK_SECRET": "w"}
        result = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path,
            env=clean_environment() | settings | secrets | named | {"PYTHONPATH": os.fspath(installed)},
            capture_output=True,
            text=True,
            timeout=60,
        )

        assert (result.returncode, result.stderr) == (0, "")
        assert re.fullmatch(printed, result.stdout)


class TestLocks:
    """Production runs what the tests ran, and none of the tools."""

    @staticmethod
    def pins(name: str) -> dict[str, list[tuple[str, str]]]:
        """Versions and hashes by name; fails when a line is no pin with a hash."""
        text = (ROOT / name).read_text()
        found: dict[str, list[tuple[str, str]]] = {}
        # Of some there are several, for several versions of Python.
        for pin in PIN.finditer(text):
            found.setdefault(pin[1], []).append((pin[2], pin[3]))
        assert sum(map(len, found.values())) == len(re.findall(r"^[^\s#]", text, re.MULTILINE)) > 0
        return found

    def test_what_production_runs_is_what_the_tests_run(self) -> None:
        production, development = self.pins("requirements.lock"), self.pins("requirements-dev.lock")

        assert production.items() <= development.items()

    def test_each_dependency_is_locked_for_those_who_need_it(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        needed = {re.split(r"[<>=]", each)[0] for each in project["dependencies"]}
        tools = {re.split(r"[<>=]", each)[0] for each in project["optional-dependencies"]["dev"]}

        assert needed <= self.pins("requirements.lock").keys()
        assert tools <= self.pins("requirements-dev.lock").keys()
        assert not (tools - {"requests"}) & self.pins("requirements.lock").keys()
