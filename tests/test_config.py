"""Settings come from the environment, and what is wrong with it is said in one sentence each."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.config import ConfigurationError, Settings, require_own_address
from tests.web import clean_environment

ROOT = Path(__file__).parents[1]
VALID = {
    "STRIPE_SERVICE_DATABASE_URL": "postgres://user:secret@db/payments",
    "STRIPE_SERVICE_API_KEY": "one, two",
    "STRIPE_WEBHOOK_SECRET": "whsec_1",
    "KEY_SERVICE_URL": "http://keys.test/",
    "KEY_SERVICE_API_KEY": "k",
    "RUNS_SERVICE_URL": "https://runs.test/base",
    "RUNS_SERVICE_API_KEY": "r",
}


class TestFromEnvironment:
    def test_it_reads_what_is_required_and_has_defaults_for_the_rest(self) -> None:
        settings = Settings.from_environment(VALID).require_valid()

        assert settings.database_url == "postgresql+psycopg2://user:secret@db/payments"
        assert settings.api_keys == ("one", "two")
        assert settings.key_service_url == "http://keys.test"
        assert (settings.host, settings.port, settings.web_threads) == ("0.0.0.0", 3011, 32)
        assert settings.request_deadline_seconds == 50

    @pytest.mark.parametrize("name", VALID)
    def test_it_names_a_variable_that_is_missing_or_empty(self, name: str) -> None:
        for environ in ({k: v for k, v in VALID.items() if k != name}, VALID | {name: "  "}):
            with pytest.raises(ConfigurationError) as caught:
                Settings.from_environment(environ).require_valid()
            assert caught.value.problems == (f"{name} is not set.",)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("STRIPE_SERVICE_DATABASE_URL", "mysql://db/x"),
            ("STRIPE_SERVICE_DATABASE_URL", "payments"),
            ("STRIPE_SERVICE_DATABASE_URL", "postgresql:///?sslmode=require"),
            ("STRIPE_SERVICE_DATABASE_URL", "postgresql://user@db"),
            ("STRIPE_SERVICE_DATABASE_URL", "postgresql://db:port/payments"),
            ("STRIPE_SERVICE_API_KEY", " , "),
            ("KEY_SERVICE_URL", "keys.test"),
            ("KEY_SERVICE_URL", "ftp://keys.test"),
            ("KEY_SERVICE_API_KEY", "k\u00e9y"),
            ("RUNS_SERVICE_URL", "http:///v1"),
            ("STRIPE_API_BASE", "stripe"),
            ("PORT", "http"),
            ("PORT", "0"),
            ("PORT", "65536"),
            ("PORT", "-1"),
            ("WEB_CONCURRENCY", "two"),
            ("WEB_THREADS", "0"),
            ("DB_POOL_SIZE", "1.5"),
            ("UPSTREAM_TIMEOUT_SECONDS", "soon"),
            ("UPSTREAM_TIMEOUT_SECONDS", "0"),
            ("STRIPE_TIMEOUT_SECONDS", "inf"),
            ("PAYMENT_LEASE_SECONDS", "-1"),
            ("PAYMENT_LEASE_SECONDS", "nan"),
            ("KEY_CACHE_SECONDS", "-0.1"),
            ("RECONCILE_SECONDS", "0"),
            ("REQUEST_READ_SECONDS", "0"),
        ],
    )
    def test_it_says_what_is_wrong_with_a_value_and_does_not_repeat_it(self, name: str, value: str) -> None:
        (problem,) = Settings.from_environment(VALID | {name: value}).problems

        assert problem.startswith(f"{name} ")
        assert problem.endswith(".")
        assert value not in problem.removeprefix(name) or value in "0 -1"

    def test_it_keeps_secrets_out_of_its_representation(self) -> None:
        shown = repr(Settings.from_environment(VALID))

        assert "secret" not in shown.replace("webhook_secrets", "")
        assert "whsec_1" not in shown

    def test_it_takes_a_cache_of_zero_seconds(self) -> None:
        assert Settings.from_environment(VALID | {"KEY_CACHE_SECONDS": "0"}).require_valid().key_cache_seconds == 0


class TestGunicornConfig:
    def test_it_refuses_to_start_with_one_sentence_for_each_problem(self) -> None:
        environment = clean_environment() | VALID | {"PORT": "http"}
        del environment["RUNS_SERVICE_URL"]
        result = subprocess.run(
            [sys.executable, "-m", "gunicorn", "-c", "python:app.gunicorn_config", "wsgi:app"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
        )

        assert result.returncode == 1
        assert result.stderr.splitlines() == [
            "stripe-service can't start:",
            "- RUNS_SERVICE_URL is not set.",
            "- PORT must be a whole number above 0.",
        ]

    def test_its_processes_tell_that_they_live_in_memory_where_there_is_some(self, tmp_path: Path) -> None:
        """Fails when they do so on the disk of the temporary directory, which may stall."""
        names = "worker_tmp_dir, heartbeat_directory(Path('.')), heartbeat_directory(Path('missing'))"
        code = f"from pathlib import Path; from app.gunicorn_config import *; print({names})"
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=clean_environment() | VALID | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=30,
        )

        in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        assert result.stdout.split() == [str(in_memory), ".", "None"], result.stderr

    @pytest.mark.parametrize("host", ["no.such.invalid", "192.0.2.1", "a..b", "[::1]", "127.0.0.1:80"])
    def test_it_names_the_host_when_this_machine_can_not_listen_there(self, host: str) -> None:
        """gunicorn would try five times; it fails with a traceback at a name that is none."""
        with pytest.raises(ConfigurationError) as caught:
            require_own_address(host)

        assert caught.value.problems == ("HOST must be an address of this machine, without a port.",)

    def test_it_refuses_to_start_with_such_a_host(self) -> None:
        result = subprocess.run(
            [sys.executable, "-m", "gunicorn", "-c", "python:app.gunicorn_config", "wsgi:app"],
            cwd=ROOT,
            env=clean_environment() | VALID | {"HOST": "192.0.2.1"},
            capture_output=True,
            text=True,
            timeout=30,
        )

        assert result.returncode == 1
        assert result.stderr.splitlines() == [
            "stripe-service can't start:",
            "- HOST must be an address of this machine, without a port.",
        ]


class TestRequireOwnAddress:
    @pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
    def test_it_takes_an_address_of_this_machine(self, host: str) -> None:
        require_own_address(host)


class TestCommands:
    @pytest.mark.parametrize("arguments", [["--help"], ["openapi", "print"], ["sandbox", "--help"]])
    def test_it_needs_no_settings(self, arguments: list[str]) -> None:
        result = subprocess.run(
            [sys.executable, "-m", "flask", *arguments],
            cwd=ROOT,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=30,
        )

        assert (result.returncode, result.stderr) == (0, "")
