"""The `flask` commands: the worker, recovery and reconciliation by hand, a look at payments, what to tell Stripe,
the version, and the stand-ins.
"""

from flask import Flask

from app.cli.endpoints import endpoints
from app.cli.events import events
from app.cli.keys import keys
from app.cli.payments import payments
from app.cli.reconciliation import reconcile
from app.cli.recovery import recover
from app.cli.sandbox import run_sandbox
from app.cli.version import show_version
from app.cli.worker import run_worker


def register_commands(app: Flask) -> None:
    """Add the service's commands to those of Flask and its extensions."""
    for command in (run_worker, recover, reconcile, payments, events, endpoints, keys, show_version, run_sandbox):
        app.cli.add_command(command)
