"""A generated Python client and generated TypeScript types: they are well typed, and the service understands them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.web import API_KEY, WebProcess, clean_environment

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "openapi" / "openapi.json"
GENERATED = HERE / "generated"
PYTHON_CLIENT = GENERATED / "stripe_service_client"
PROGRAMS = HERE / "node_modules" / ".bin"
# The linter asks its makers for news, and tells them of its use, unless it is told not to.
TELLING_NOBODY = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
# What each caller prints: the payment that it made, and what it is told of one that nobody made.
SAID = re.compile(r"[0-9a-f-]{36} checkout_created\n404 not_found\n")


def run(*command: str | Path, **environment: str) -> str:
    """What a program prints, which may complain of nothing."""
    done = subprocess.run(
        command,
        cwd=HERE,
        env={**clean_environment(), "NO_COLOR": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def generated() -> None:
    """The client and the types, made anew."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir()
    run(
        *(sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning", "--meta", "none"),
        *("--config", HERE / "generator.yaml", "--path", DOCUMENT, "--output-path", PYTHON_CLIENT),
    )
    run(PROGRAMS / "openapi-typescript", DOCUMENT, "--output", GENERATED / "document.d.ts")


class TestDocument:
    def test_a_linter_finds_nothing(self) -> None:
        said = run(PROGRAMS / "redocly", "lint", "--config", HERE / "lint.yaml", DOCUMENT, **TELLING_NOBODY)

        assert "Your API description is valid." in said
        assert "warning" not in said.partition("validating")[2]


class TestPythonClient:
    def test_it_is_well_typed_and_so_is_its_caller(self) -> None:
        run(
            *(sys.executable, "-m", "mypy", "--config-file=", "--strict", "--explicit-package-bases"),
            *("--cache-dir", os.devnull, HERE / "caller.py", PYTHON_CLIENT),
            MYPYPATH=str(GENERATED),
        )

    def test_it_creates_a_payment_and_asks_for_it(self, web: WebProcess) -> None:
        said = run(sys.executable, "-W", "error", HERE / "caller.py", web.url, API_KEY, PYTHONPATH=str(GENERATED))

        assert SAID.fullmatch(said)


class TestTypeScriptTypes:
    def test_a_caller_that_they_allow_creates_a_payment_and_asks_for_it(self, web: WebProcess) -> None:
        run(PROGRAMS / "tsc")

        said = run("node", GENERATED / "javascript" / "caller.js", web.url, API_KEY)

        assert SAID.fullmatch(said)
