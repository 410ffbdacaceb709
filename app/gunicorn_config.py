"""gunicorn's settings in production: `gunicorn -c python:app.gunicorn_config wsgi:app`."""

import sys

from app.config import ConfigurationError, Settings


def _settings() -> Settings:
    try:
        return Settings.from_environment().require_valid()
    except ConfigurationError as error:
        sys.exit("\n".join(["stripe-service can't start:", *(f"- {problem}" for problem in error.problems)]))


_current = _settings()

bind = f"[{_current.host}]:{_current.port}" if ":" in _current.host else f"{_current.host}:{_current.port}"
workers = _current.web_concurrency
worker_class = "gthread"
threads = _current.web_threads
# Longer than the load balancers in common use keep an idle connection, so that it is never us who close it first.
keepalive = 75
# What was accepted is answered: a request's own deadline, and five seconds to send what it has to say.
graceful_timeout = int(_current.request_deadline_seconds) + 5
control_socket_disable = True
# Clients are made after the fork, and a worker that replaces a dead one starts from the code on disk.
preload_app = False
