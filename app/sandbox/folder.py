"""The folder `.sandbox` of the project: what the sandbox keeps there, who runs on it, and how a shell joins in."""

import fcntl
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.config import Settings
from app.sandbox.postgres import CHECKOUT, sandbox_directory

# Under zsh and every POSIX shell; a virtual environment's own scripts name the place where it was made.
FLASK = 'flask() {{ (cd {project} && exec {python} -m flask "$@"); }}'


class AlreadyRuns(Exception):
    """The sandbox of this folder runs; `process_id` is None while that one is just starting."""

    def __init__(self, process_id: int | None) -> None:
        self.process_id = process_id
        super().__init__(f"The sandbox of this folder runs already, as process {process_id or '(starting)'}.")


def data_file() -> Path:
    """Return where the stand-ins keep what they know."""
    return sandbox_directory() / "sandbox.json"


@contextmanager
def claimed() -> Iterator[None]:
    """Be the one process that runs the sandbox of this folder, until the block ends.

    :raises AlreadyRuns: when another process does.
    """
    with (sandbox_directory() / "run.pid").open("a+") as claim:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.seek(0)
            raise AlreadyRuns(int(claim.read() or 0) or None) from None
        _write_number(claim.fileno())
        try:
            yield
        finally:
            os.ftruncate(claim.fileno(), 0)


def _write_number(claim: int) -> None:
    os.ftruncate(claim, 0)
    os.write(claim, str(os.getpid()).encode())


def write_environment(environment: Mapping[str, str]) -> Path:
    """Write what a shell reads to work on what runs here: the service's variables, and the command `flask`.

    :param environment: of the processes, with all that has nothing to do with the service
    :return: the file, which only its owner may read
    """
    file = sandbox_directory() / "environment"
    lines = [f"export {name}={shlex.quote(environment[name])}" for name in _settings_in(environment)]
    lines.append(FLASK.format(project=shlex.quote(str(CHECKOUT)), python=shlex.quote(sys.executable)))
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as written:
        written.writelines(f"{line}\n" for line in lines)
    return file


def _settings_in(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that the service reads."""
    read = _Read(environment)
    Settings.from_environment(read)
    return sorted(read.names)


class _Read(Mapping[str, str]):
    """Variables, which notes those that are read."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        value = self._environment[name]
        self.names.add(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._environment)

    def __len__(self) -> int:
        return len(self._environment)
