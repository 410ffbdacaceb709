"""The embedded PostgreSQL, started by real processes in a temporary directory of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pytest
import sqlalchemy

from app.sandbox import postgres

USE = """
import sys
from app.sandbox import postgres
print(postgres.start(sys.argv[1]), flush=True)
sys.stdin.read()
"""
USE_AND_FORK = """
import os, sys
from app.sandbox import postgres
print(postgres.start(sys.argv[1]), flush=True)
if os.fork() == 0:
    sys.exit()
os.wait()
print("the child has ended", flush=True)
sys.stdin.read()
"""
QUERY = """
import sys, psycopg2
from app.sandbox import postgres
psycopg2.connect(postgres.start(sys.argv[1])).cursor().execute("SELECT pg_sleep(0.02)")
"""
FORGET = "import sys; from app.sandbox import postgres; postgres.forget(sys.argv[1])"
STOP = "import sys; from app.sandbox import postgres; postgres.stop(sys.argv[1])"

Use = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """A temporary directory that other accounts may pass, as they may the usual one.

    In it is a checkout of this module alone, which Python imports quicker than the whole service.
    """
    directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    directory.chmod(0o755)
    (directory / "app/sandbox").mkdir(parents=True)
    shutil.copy(postgres.__file__, directory / "app/sandbox")
    yield directory
    for name in ("tests", "development"):
        run(STOP, name, directory)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def used_project(temporary: Path) -> Path:
    """A checkout, deep in a folder that only its owner may pass, of which the server of development keeps 42."""
    (temporary / "private").mkdir(mode=0o700)
    project = temporary / "private" / ("deep" * 30)
    (project / "app/sandbox").mkdir(parents=True)
    shutil.copy(postgres.__file__, project / "app/sandbox")
    with spawn(USE, "development", project, temporary=temporary) as process:
        query(url_of(process), "CREATE TABLE kept AS SELECT 42 AS answer")
    return project


@pytest.fixture
def project(used_project: Path) -> Iterator[Path]:
    """A copy of that checkout."""
    project = used_project.with_name("copy")
    shutil.copytree(used_project, project)
    yield project
    shutil.rmtree(project)


@pytest.fixture
def use(temporary: Path) -> Iterator[Use]:
    with ExitStack() as users:

        def start(name: str = "tests", *, program: str = USE) -> subprocess.Popen[str]:
            return users.enter_context(spawn(program, name, temporary))

        yield start


def spawn(program: str, name: str, checkout: Path, *, temporary: Path | None = None) -> subprocess.Popen[str]:
    """Start a Python program; leaving the context ends its standard input and waits for it."""
    return subprocess.Popen(
        [sys.executable, "-c", program, name],
        cwd=checkout,
        env=os.environ | {"TMPDIR": str(temporary or checkout)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(program: str, name: str, checkout: Path, *, temporary: Path | None = None) -> tuple[int | None, str]:
    with spawn(program, name, checkout, temporary=temporary) as process:
        _, errors = process.communicate(timeout=30)
        return process.returncode, errors


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def query(url: str, statement: str) -> object:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]
    finally:
        connection.close()


def setting(url: str, name: str) -> object:
    return query(url, f"SELECT current_setting('{name}')")


def pid_files(directory: Path, name: str) -> list[Path]:
    home = ".sandbox" if name == "development" else "stripe-service-*"
    return list(directory.glob(f"{home}/{name}/data-*/postmaster.pid"))


def server_pid(directory: Path, name: str = "tests") -> int:
    (pid_file,) = pid_files(directory, name)
    return int(pid_file.read_text().split()[0])


def is_running(directory: Path, name: str = "tests") -> bool:
    return bool(pid_files(directory, name))


def kept(checkout: Path, *, temporary: Path) -> object:
    """What the server of development of a checkout keeps."""
    with spawn(USE, "development", checkout, temporary=temporary) as process:
        return query(url_of(process), "SELECT answer FROM kept")


def modes_of_folders_above(path: Path) -> dict[Path, int]:
    return {folder: folder.stat().st_mode for folder in (path, *path.parents)}


class TestStart:
    def test_it_returns_a_url_for_psycopg2_and_sqlalchemy(self, use: Use) -> None:
        url = url_of(use())

        assert query(url, "SELECT current_database()") == "postgres"
        engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg2:"))
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT current_database()")) == "postgres"
        engine.dispose()

    def test_it_listens_on_no_network_address(self, use: Use) -> None:
        assert setting(url_of(use()), "listen_addresses") == ""

    def test_it_waits_for_no_disk_when_it_is_for_tests(self, use: Use) -> None:
        url = url_of(use())

        names = ("fsync", "synchronous_commit", "full_page_writes")
        assert [setting(url, name) for name in names] == ["off", "off", "off"]

    def test_it_is_durable_and_keeps_its_data_when_it_is_for_development(self, use: Use, temporary: Path) -> None:
        with use("development") as first:
            url = url_of(first)
            assert [setting(url, name) for name in ("fsync", "synchronous_commit")] == ["on", "on"]
            query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert not is_running(temporary, "development")

        assert query(url_of(use("development")), "SELECT answer FROM kept") == 42

    def test_it_starts_one_server_when_processes_start_it_at_once(self, use: Use, temporary: Path) -> None:
        run(STOP, "tests", temporary)

        urls = [url_of(process) for process in [use(), use(), use()]]

        assert len(set(urls)) == 1
        assert len({query(url, "SELECT pg_postmaster_start_time()") for url in urls}) == 1

    def test_it_finds_the_server_when_its_owner_was_killed(self, use: Use) -> None:
        owner = use()
        started = query(url_of(owner), "SELECT pg_postmaster_start_time()")
        owner.kill()
        owner.wait()

        assert query(url_of(use()), "SELECT pg_postmaster_start_time()") == started

    def test_it_starts_again_when_the_server_was_killed(self, use: Use, temporary: Path) -> None:
        url = url_of(use())
        os.kill(server_pid(temporary), signal.SIGKILL)

        assert url_of(use()) == url
        assert query(url, "SELECT 1") == 1

    def test_it_keeps_the_path_of_the_socket_short_when_the_project_lies_deep(
        self, used_project: Path, temporary: Path
    ) -> None:
        with spawn(USE, "development", used_project, temporary=temporary) as process:
            url = url_of(process)
            (sockets,) = parse_qs(urlsplit(url).query)["host"]
            assert len(f"{sockets}/.s.PGSQL.5432") <= 100
            assert query(url, "SELECT answer FROM kept") == 42
        assert not Path(sockets).parent.exists()

    @pytest.mark.parametrize("killed", [False, True])
    def test_it_finds_its_data_when_the_project_was_moved(self, project: Path, temporary: Path, killed: bool) -> None:
        with spawn(USE, "development", project, temporary=temporary) as process:
            query(url_of(process), "UPDATE kept SET answer = 43")
            if killed:
                process.kill()
        moved = project.rename(project.with_name("moved"))
        try:
            assert kept(moved, temporary=temporary) == 43
            assert not is_running(moved, "development")
        finally:
            moved.rename(project)

    def test_it_shares_nothing_with_a_copy_of_the_project(
        self, used_project: Path, project: Path, temporary: Path
    ) -> None:
        with spawn(USE, "development", project, temporary=temporary) as process:
            query(url_of(process), "UPDATE kept SET answer = 2")
            assert kept(used_project, temporary=temporary) == 42
        assert kept(project, temporary=temporary) == 2

    def test_it_leaves_the_folders_above_the_data_and_the_wheel_as_they_are(self, use: Use, temporary: Path) -> None:
        wheel = Path(str(distribution(postgres.WHEEL).locate_file(postgres.PROGRAMS)))
        before = modes_of_folders_above(temporary) | modes_of_folders_above(wheel)

        url_of(use())

        assert modes_of_folders_above(temporary) | modes_of_folders_above(wheel) == before

    def test_it_refuses_a_directory_that_is_not_its_own(self, use: Use, temporary: Path) -> None:
        url_of(use())
        own = next(temporary.glob("stripe-service-*/tests")).parent
        trap = temporary / "trap"
        trap.mkdir()
        (trap / own.name).symlink_to(own)

        code, errors = run(USE, "tests", temporary, temporary=trap)

        assert code == 1
        assert f"PostgresError: {trap / own.name} belongs to somebody else" in errors


class TestEndOfUse:
    def test_it_stops_the_server_when_its_last_user_exits(self, use: Use, temporary: Path) -> None:
        with use() as last:
            with use() as first:
                url = url_of(last), url_of(first)
            assert query(url[0], "SELECT 1") == 1
        assert not is_running(temporary)

    def test_it_stops_no_server_that_another_process_has_just_begun_to_use(self, temporary: Path) -> None:
        with ThreadPoolExecutor(3) as users:
            results = list(users.map(lambda _: run(QUERY, "tests", temporary), range(18)))

        assert results == [(0, "")] * 18

    def test_it_leaves_the_server_alone_when_a_forked_child_exits(self, use: Use) -> None:
        process = use(program=USE_AND_FORK)
        url = url_of(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "the child has ended\n"

        assert query(url, "SELECT 1") == 1


class TestForget:
    def test_it_stops_the_server_and_removes_its_data(self, use: Use, temporary: Path) -> None:
        query(url_of(use("development")), "CREATE TABLE remembered (answer integer)")

        assert run(FORGET, "development", temporary) == (0, "")

        assert not is_running(temporary, "development")
        assert query(url_of(use("development")), "SELECT to_regclass('remembered')") is None


class TestStop:
    def test_it_stops_the_server_when_another_process_uses_it(self, use: Use, temporary: Path) -> None:
        url_of(use())

        assert run(STOP, "tests", temporary) == (0, "")

        assert not is_running(temporary)

    def test_it_does_nothing_when_the_server_is_not_running(self, temporary: Path) -> None:
        run(STOP, "tests", temporary)

        assert run(STOP, "tests", temporary) == (0, "")
