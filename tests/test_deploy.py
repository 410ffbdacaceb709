"""The files that start the service: they name settings, commands and times that are ours, and go with each other."""

import configparser
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import create_app
from app.cli.worker import LAST_SECONDS
from app.config import METRICS_DIRECTORY, Settings
from tests.web import WebProcess, clean_environment, free_port

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MANIFESTS = ["migrate.yaml", "web.yaml", "worker.yaml"]
WEB = ["gunicorn", "-c", "python:app.gunicorn_config", "wsgi:app"]
COMMANDS = [WEB, ["flask", "worker"], ["flask", "db", "upgrade"]]
# In which all that was accepted is answered: gunicorn's `graceful_timeout` and the worker's grace.
GRACE_SECONDS = Settings.from_environment({}).request_deadline_seconds + LAST_SECONDS


class Asked(Mapping[str, str]):
    """An environment that holds nothing, and notes what it is asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __getitem__(self, name: str) -> str:
        self.names.append(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def example(*, with_defaults: bool) -> dict[str, str]:
    """The variables of the example environment.

    :param with_defaults: whether those are among them that are commented out
    """
    lines = (DEPLOY / "stripe-service.env.example").read_text().splitlines()
    return dict(re.findall(rf"^{'#?' if with_defaults else ''}([A-Z_]+)=(.*)$", "\n".join(lines), re.MULTILINE))


def documents(name: str) -> dict[str, dict[str, Any]]:
    """The objects of a manifest by their kinds."""
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())}


def pod(name: str) -> dict[str, Any]:
    found = documents(name)
    return dict((found.get("Deployment") or found["Job"])["spec"]["template"]["spec"])


def container(name: str) -> dict[str, Any]:
    (only,) = pod(name)["containers"]
    return dict(only)


def instructions(name: str) -> list[str]:
    """What stands behind each instruction of a name in the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^{name} +(.+)$", text, re.MULTILINE)


def seconds(text: str) -> float:
    (number,) = re.findall(r"^(\d+)s$", text)
    return float(number)


class TestCommands:
    def test_those_that_are_compared_with_exist(self) -> None:
        commands = create_app(Settings.from_environment({})).cli.commands

        assert {command[1] for command in COMMANDS if command[0] == "flask"} <= commands.keys() | {"db"}
        assert f"$ {shlex.join(WEB)} " in (ROOT / "README.md").read_text()


class TestEnvironment:
    def test_it_names_every_variable_that_is_read(self) -> None:
        asked = Asked()
        Settings.from_environment(asked)

        named = {name for name in example(with_defaults=True) if not name.startswith("PG")}
        assert named == set(asked.names) - {METRICS_DIRECTORY}

    def test_it_sets_all_that_is_required_to_what_can_be_read(self) -> None:
        assert Settings.from_environment(example(with_defaults=False)).problems == ()

    def test_what_is_commented_out_is_the_default(self) -> None:
        uncommented = Settings.from_environment(example(with_defaults=True))

        assert uncommented == Settings.from_environment(example(with_defaults=False))

    def test_all_who_read_it_read_the_same(self) -> None:
        """Fails for a quote, which some keep and some take off, and for what a shell expands."""
        for name, value in example(with_defaults=True).items():
            assert shlex.split(value, posix=True) == ([value] if value else []), name
            assert not set(value) & set("$`&;|<>*?()"), name


class TestDockerfile:
    def test_its_python_is_the_oldest_that_the_project_allows_and_the_one_of_the_locks(self) -> None:
        oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
        bases = {re.split(r"[:\s]", base)[1] for base in instructions("FROM")}

        assert {base.split("-")[0] for base in bases} == {oldest}
        for lock in ROOT.glob("requirements*.lock"):
            assert f"--python-version {oldest} " in lock.read_text().splitlines()[1]

    def test_it_copies_what_the_service_is_made_of_and_what_may_be_copied(self) -> None:
        allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        copied = {name for line in instructions("COPY") for name in line.split()[:-1] if "venv" not in line}

        assert copied == allowed
        assert copied >= {"app", "migrations", "openapi", "pyproject.toml", "wsgi.py"}
        assert all((ROOT / name).exists() for name in copied)

    def test_it_installs_the_lock_of_production_with_hashes(self) -> None:
        (install,) = [line for line in instructions("RUN") if "install" in line.split() and "pip" in line]

        assert {"--require-hashes", "/requirements.lock"} <= set(install.split())

    def test_it_runs_the_web_as_somebody_without_rights(self) -> None:
        assert [yaml.safe_load(line) for line in instructions("CMD")][-1] == WEB
        assert instructions("USER") == ["10001:10001"]


class TestHealthCheck:
    @staticmethod
    def check(port: str) -> int:
        environment = clean_environment() | {"PORT": port, "http_proxy": "http://127.0.0.1:1"}
        program = [sys.executable, os.fspath(DEPLOY / "health_check.py")]
        return subprocess.run(program, env=environment, capture_output=True, timeout=30).returncode

    def test_it_exits_with_0_when_the_service_answers(self, environment: dict[str, str]) -> None:
        with WebProcess.start(environment | {"WEB_CONCURRENCY": "1"}) as web:
            assert self.check(web.url.rpartition(":")[2]) == 0

    def test_it_exits_with_1_when_nobody_does(self) -> None:
        assert self.check(str(free_port())) == 1


class TestCompose:
    @pytest.fixture
    def services(self) -> dict[str, dict[str, Any]]:
        return dict(yaml.safe_load((ROOT / "compose.yaml").read_text())["services"])

    def test_it_starts_what_there_is_to_start(self, services: dict[str, dict[str, Any]]) -> None:
        ours = {name: service for name, service in services.items() if name != "database"}

        assert [service.get("command", WEB) for service in ours.values()] == [COMMANDS[2], COMMANDS[0], COMMANDS[1]]
        for service in ours.values():
            assert service["env_file"] == "stripe-service.env"
            assert seconds(service["stop_grace_period"]) >= GRACE_SECONDS

    def test_only_the_web_is_asked_how_it_is(self, services: dict[str, dict[str, Any]]) -> None:
        unasked = {name for name, service in services.items() if service.get("healthcheck") == {"disable": True}}

        assert unasked == {"migrate", "worker"}

    def test_its_database_is_the_one_that_the_service_is_told(self, services: dict[str, dict[str, Any]]) -> None:
        told = services["web"]["environment"]["STRIPE_SERVICE_DATABASE_URL"]
        made = services["database"]["environment"]

        url = re.sub(r"\$\{.*\}", "password", told)
        assert url == f"postgresql://{made['POSTGRES_USER']}:password@database/{made['POSTGRES_DB']}"
        assert Settings.from_environment({"STRIPE_SERVICE_DATABASE_URL": url}).database_url.endswith(url[10:])


class TestSystemd:
    @staticmethod
    def service(unit: Path) -> Mapping[str, str]:
        parser = configparser.ConfigParser(interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(unit.read_text())
        return parser["Service"]

    def test_there_is_a_unit_for_each_program(self) -> None:
        programs = [
            shlex.split(self.service(unit)["ExecStart"].replace("/opt/stripe-service/bin/", "")) for unit in UNITS
        ]

        assert sorted(programs) == sorted(COMMANDS)

    @pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
    def test_it_reads_the_environment_and_runs_without_rights(self, unit: Path) -> None:
        service = self.service(unit)

        assert service["EnvironmentFile"] == "/etc/stripe-service.env"
        assert (service["DynamicUser"], service["CapabilityBoundingSet"]) == ("yes", "")

    @pytest.mark.parametrize("unit", [unit for unit in UNITS if "migrate" not in unit.stem], ids=lambda unit: unit.stem)
    def test_it_waits_for_what_was_accepted(self, unit: Path) -> None:
        assert float(self.service(unit)["TimeoutStopSec"]) >= GRACE_SECONDS


class TestKubernetes:
    def test_it_applies_each_manifest(self) -> None:
        kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())

        assert kustomization["resources"] == MANIFESTS
        assert {image["name"] for image in kustomization["images"]} == {"stripe-service"}

    def test_there_is_a_manifest_for_each_program(self) -> None:
        assert [container(name).get("command", WEB) for name in MANIFESTS] == [COMMANDS[2], COMMANDS[0], COMMANDS[1]]

    @pytest.mark.parametrize("name", MANIFESTS)
    def test_it_reads_the_environment_and_runs_without_rights(self, name: str) -> None:
        security = pod(name)["securityContext"]
        (user,) = instructions("USER")

        assert container(name)["image"] == "stripe-service"
        assert container(name)["envFrom"] == [{"secretRef": {"name": "stripe-service"}}]
        assert security["runAsNonRoot"] is True
        assert f"{security['runAsUser']}:{security['runAsGroup']}" == user
        assert container(name)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert [mount["mountPath"] for mount in container(name)["volumeMounts"]] == ["/tmp"]

    @pytest.mark.parametrize("name", ["web.yaml", "worker.yaml"])
    def test_it_waits_for_what_was_accepted(self, name: str) -> None:
        before = container(name).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])

        assert before[0] == "sleep"
        assert pod(name)["terminationGracePeriodSeconds"] >= GRACE_SECONDS + float(before[1])

    def test_its_probes_ask_what_is_there_and_only_readiness_asks_the_database(self) -> None:
        web = container("web.yaml")
        paths = {name: web[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
        routes = {rule.rule for rule in create_app(Settings.from_environment({})).url_map.iter_rules()}

        assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/health/ready"}
        assert set(paths.values()) <= routes
        assert web["ports"] == [{"name": "http", "containerPort": Settings.port}]

    def test_its_service_finds_its_pods(self) -> None:
        found = documents("web.yaml")
        labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]

        assert found["Service"]["spec"]["selector"] == labels
        assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels


class TestPages:
    @pytest.mark.parametrize("name", ["deploy.md", "operations.md"])
    def test_the_commands_that_are_named_exist(self, name: str) -> None:
        commands = set(create_app(Settings.from_environment({})).cli.commands) | {"db"}
        named = set(re.findall(r"\bflask ([a-z]+)", (ROOT / "docs" / name).read_text()))

        assert named
        assert named <= commands

    def test_the_files_that_are_named_exist(self) -> None:
        page = (ROOT / "docs" / "deploy.md").read_text()
        named = re.findall(r"\bdeploy/[\w./*-]+\w", page) + [
            "docs/" + link for link in re.findall(r"\]\((\w+\.\w+)\)", page)
        ]

        assert len(named) > 5
        assert all(list(ROOT.glob(each)) for each in named)
