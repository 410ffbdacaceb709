"""gunicorn's settings in production: `gunicorn -c python:app.gunicorn_config wsgi:app`."""

import gc
import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger
from prometheus_client.multiprocess import mark_process_dead

from app.config import ConfigurationError, Settings, provide_metrics_directory, require_own_address
from app.gunicorn_worker import WholeRequestWorker
from app.logs import WithoutRequest, configure_logging
from app.metrics import share_between_processes
from app.version import VERSION


def _settings() -> Settings:
    try:
        settings = Settings.from_environment().require_valid()
        # gunicorn itself would try for seconds, and not say which variable it is.
        require_own_address(settings.host)
        return settings
    except ConfigurationError as error:
        sys.exit("\n".join(["stripe-service can't start:", *(f"- {problem}" for problem in error.problems)]))


_current = _settings()

bind = f"[{_current.host}]:{_current.port}" if ":" in _current.host else f"{_current.host}:{_current.port}"
workers = _current.web_concurrency
threads = _current.web_threads
# Longer than the load balancers in common use keep an idle connection, so that it is never us who close it first.
keepalive = 75
# What was accepted is answered: a request's own deadline, and five seconds to send what it has to say.
graceful_timeout = int(_current.request_deadline_seconds) + 5
control_socket_disable = True


def heartbeat_directory(memory: Path = Path("/dev/shm")) -> str | None:  # noqa: S108 -- the name that Linux gives it
    """Where each process touches a file to say that it lives: in memory, or gunicorn's choice, which is on a disk.

    A disk that stalls would hold up the touch, and gunicorn would kill a process that is well.
    https://gunicorn.org/reference/settings/#worker_tmp_dir
    """
    return str(memory) if os.access(memory, os.W_OK | os.X_OK) else None


worker_tmp_dir = heartbeat_directory()
# A file would go by another way than all else, on which the thread waits for its client.
sendfile = False
# The most that gunicorn allows: `GET /stats` may name a hundred runs.
limit_request_line = 8190
# Clients are made after the fork, and a worker that replaces a dead one starts from the code on disk.
preload_app = False


class ServiceLogger(Logger):  # type: ignore[misc]
    """gunicorn's own lines, in the format and on the stream of all others.

    With `logconfig_dict` it would put together an access line of its own for every request, with its query and all of
    its headers, and only then find that nobody wants it.
    """

    _without_request = WithoutRequest()

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.addFilter(self._without_request)
        self.error_log.propagate = True
        configure_logging(self.loglevel)


logger_class = ServiceLogger


class ServiceWorker(WholeRequestWorker):
    """The worker, as the environment sets it."""

    request_read_seconds = _current.request_read_seconds


worker_class = ServiceWorker
# Of each process; with those to the database and to upstreams, they stay below the 1,024 files that many systems allow.
worker_connections = 800

_at_exit = ExitStack()


def when_ready(server: Any) -> None:
    """Before the first worker is forked: have all keep their metrics where each can read them, and say the version."""
    if directory := provide_metrics_directory():
        _at_exit.callback(shutil.rmtree, directory, ignore_errors=True)
    share_between_processes()
    server.log.info("stripe-service %s", VERSION)


def post_worker_init(worker: Any) -> None:
    """Leave what was imported out of every search for garbage, which a large body sets off a hundred times."""
    gc.freeze()


def child_exit(server: Any, worker: Any) -> None:
    """What a worker had in use goes with it; what it counted stays."""
    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(server: Any) -> None:
    """Remove the directory that was made for the metrics."""
    _at_exit.close()
