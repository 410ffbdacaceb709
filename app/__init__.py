"""Stripe Service: one service through which many apps take payments with Stripe."""

from flask import Flask

from app.auth import register_auth
from app.blueprints import (
    catalog,
    customers,
    docs,
    event_endpoints,
    events,
    health,
    keys,
    payments,
    status,
    subscriptions,
    webhooks,
)
from app.blueprints import metrics as metrics_routes  # `app.metrics` is what they show
from app.cli import register_commands
from app.config import Settings
from app.database import database_config
from app.errors import register_error_handlers
from app.extensions import db, migrate
from app.logs import configure_logging
from app.request_context import register_request_context, register_services
from app.services import Services
from app.web import API_CONFIG, AnyTextConverter, OrjsonProvider, api

# In the order of the document: what is asked for most comes first.
API_BLUEPRINTS = (
    payments.blp,
    status.blp,
    customers.blp,
    subscriptions.blp,
    event_endpoints.blp,
    events.blp,
    catalog.blp,
    keys.blp,
    webhooks.blp,
    metrics_routes.blp,
    health.blp,
)
PAGE_BLUEPRINTS = (docs.blp, docs.swagger_ui)


def create_app(settings: Settings | None = None, services: Services | None = None) -> Flask:
    """Build an application; without arguments from the environment.

    Settings that are missing don't stop it, so that `flask --help` and `make openapi` need none. An application
    without them lets nobody in, and neither gunicorn nor a command that needs them starts.
    """
    app = Flask(__name__, static_folder=None)
    if settings is None:
        # Whoever gives settings has a process, and log lines, of their own.
        configure_logging()
        settings = Settings.from_environment()
    app.json = OrjsonProvider(app)
    app.url_map.converters["text"] = AnyTextConverter
    app.url_map.merge_slashes = False
    app.config.from_mapping(API_CONFIG | database_config(settings))
    _init_extensions(app)
    register_services(app, settings, services)
    register_request_context(app)
    register_auth(app)
    register_error_handlers(app)
    register_commands(app)
    return app


def _init_extensions(app: Flask) -> None:
    db.init_app(app)
    migrate.init_app(app, db)
    api.init_app(app)
    for blueprint in API_BLUEPRINTS:
        api.register_blueprint(blueprint)
    for page in PAGE_BLUEPRINTS:
        app.register_blueprint(page)
