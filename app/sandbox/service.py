"""The service as `make run` serves it: its docs page sends the sandbox's own API key, unless another one was set, and
leads to the page of the stand-ins.
"""

from flask import Flask

from app import create_app
from app.blueprints.docs import SHOWN_API_KEY, STAND_INS_URL
from app.config import Settings
from app.request_context import EXTENSION_KEY
from app.sandbox.settings import SandboxSettings


def create_service(settings: Settings | None = None) -> Flask:
    """Create the application, whose docs page shows a key only if everybody knows it."""
    service = create_app(settings)
    used: Settings = service.extensions[EXTENSION_KEY].settings
    if SandboxSettings.service_api_key in used.api_keys:
        service.config[SHOWN_API_KEY] = SandboxSettings.service_api_key
    stand_ins = f"http://127.0.0.1:{SandboxSettings.from_environment().port}"
    if any(url.startswith(stand_ins) for url in (used.stripe_api_base, used.key_service_url, used.runs_service_url)):
        service.config[STAND_INS_URL] = stand_ins
    return service
