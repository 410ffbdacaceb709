"""What belongs to one request: its id, its deadline, and the services that it works with."""

import re
import uuid
from typing import cast

from flask import Flask, Response, current_app, g, request
from werkzeug.exceptions import RequestEntityTooLarge

from app.config import Settings
from app.database import bound_waits
from app.extensions import db
from app.openapi import route_template
from app.services import Services
from app.services.http import CallContext, Deadline

EXTENSION_KEY = "stripe-service"

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def register_services(app: Flask, settings: Settings, services: Services | None) -> None:
    """Give the application the services that its use cases work with."""
    with app.app_context():
        bound_waits(db.engine)
        app.extensions[EXTENSION_KEY] = services or Services.connect(settings, db.engine)


def register_request_context(app: Flask) -> None:
    """Give every request an id, which every answer carries, and a deadline."""
    app.before_request(_begin_request)
    app.after_request(_send_request_id)


def services() -> Services:
    """The services of the current application."""
    return cast(Services, current_app.extensions[EXTENSION_KEY])


def call_context() -> CallContext:
    """On whose behalf upstreams are called in this request, and until when."""
    route = route_template(request.url_rule.rule if request.url_rule else "")
    return CallContext(request.method, route, g.request_id, g.deadline)


def _begin_request() -> None:
    # The clock starts before any lease is written, so that the deadline always comes before the lease lapses.
    g.deadline = Deadline.after(services().settings.request_deadline_seconds)
    sent_id = request.headers.get("X-Request-ID", "")
    g.request_id = sent_id if _SANE_REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
    if (request.content_length or 0) > current_app.config["MAX_CONTENT_LENGTH"]:
        raise RequestEntityTooLarge


def _send_request_id(response: Response) -> Response:
    response.headers["X-Request-ID"] = g.request_id
    return response
