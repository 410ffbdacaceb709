"""The service as `make run` serves it: its docs page sends the sandbox's own API key, unless another one was set."""

from flask import Flask

from app import create_app
from app.blueprints.docs import SHOWN_API_KEY
from app.config import Settings
from app.request_context import EXTENSION_KEY
from app.sandbox.settings import SandboxSettings


def create_service(settings: Settings | None = None) -> Flask:
    """Create the application, whose docs page shows a key only if everybody knows it."""
    service = create_app(settings)
    if SandboxSettings.service_api_key in service.extensions[EXTENSION_KEY].settings.api_keys:
        service.config[SHOWN_API_KEY] = SandboxSettings.service_api_key
    return service
