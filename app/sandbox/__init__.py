"""Stand-ins for Stripe, key-service and runs-service in one process, for development and tests only."""

from flask import Flask

from app.sandbox import control, customer_pages, key_service, pages, runs_service, told_app
from app.sandbox.gateway import Gateway
from app.sandbox.settings import SandboxSettings
from app.sandbox.stripe import api
from app.sandbox.world import EXTENSION, World


def create_sandbox(settings: SandboxSettings) -> Flask:
    """Create the sandbox's application, in a new world."""
    app = Flask(__name__)
    world = World(settings)
    app.extensions[EXTENSION] = world
    for part in (api, key_service, runs_service, control, pages, told_app, customer_pages):
        app.register_blueprint(part.blueprint)
    app.wsgi_app = Gateway(app.wsgi_app, world)  # type: ignore[method-assign]
    return app
