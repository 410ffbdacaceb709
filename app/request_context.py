"""What belongs to one request: its id, its deadline, and the services that it works with."""

import re
import time
import uuid
from functools import cache
from typing import cast

from flask import Flask, Request, Response, current_app, g, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import RequestEntityTooLarge

from app.config import Settings
from app.database import connect_twice, refuse_connections
from app.errors import MalformedRequest, ServiceError
from app.extensions import db
from app.http_framing import MAX_BODY_BYTES
from app.logs import begin_request, end_request, noted
from app.metrics import count_create, count_request, watch_pool
from app.services import Services
from app.services.upstreams.call_context import CallContext, Deadline
from app.web import route_template

EXTENSION_KEY = "stripe-service"

CREATING = ("payments.create_checkout", "payments.create_payment_intent")
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")
# What is logged and counted of any other: callers may send any word as one.
OTHER_METHOD = "OTHER"
# What is logged and counted of a path that is no route of ours, or has none by that method.
NO_ROUTE = "none"

# What a path is about, in the words of the log.
_PATH_FACTS = {"app_id": "app", "payment_id": "payment", "run_id": "run"}

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def register_services(app: Flask, settings: Settings, services: Services | None) -> None:
    """Give the application the services that its use cases work with."""
    with app.app_context():
        (connect_twice if settings.database_url else refuse_connections)(db.engine)
        app.extensions[EXTENSION_KEY] = services or Services.connect(settings, db.engine)
        watch_pool(db.engine, limit=settings.db_pool_size)


def register_request_context(app: Flask) -> None:
    """Give every request an id, which every answer carries, and a deadline; count it and write its access line."""
    app.before_request(_begin_request)
    app.after_request(_end_request)


def services() -> Services:
    """The services of the current application."""
    return cast(Services, current_app.extensions[EXTENSION_KEY])


def call_context() -> CallContext:
    """On whose behalf upstreams are called in this request, and until when."""
    return CallContext(g.method, g.route, g.request_id, g.deadline)


def _begin_request() -> None:
    g.began_at = time.perf_counter()
    # The clock starts before any lease is written, so that the deadline always comes before the lease lapses.
    g.deadline = Deadline.after(services().settings.request_deadline_seconds)
    sent_id = request.headers.get("X-Request-ID", "")
    g.request_id = sent_id if _SANE_REQUEST_ID.fullmatch(sent_id) else _new_request_id()
    g.method = request.method if request.method in METHODS else OTHER_METHOD
    g.route = _template(request.url_rule.rule) if request.url_rule else NO_ROUTE
    begin_request(requestId=g.request_id, method=g.method, route=g.route, **_named_in_path(request))
    _read_body()


def _read_body() -> None:
    """Read the whole body, or refuse it, before anything is done: no route sees a part of one.

    :raises RequestEntityTooLarge: when it is too long.
    :raises MalformedRequest: when its chunks are broken; one that ends early is a `ClientDisconnected` of werkzeug's.
    """
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    # werkzeug cuts a body without a length at the limit, and says nothing: one byte more tells.
    request.max_content_length = MAX_BODY_BYTES + 1
    try:
        body = request.get_data()
    except ParseException:
        raise MalformedRequest from None
    if len(body) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge


def record_unread_request(error: ServiceError) -> str:
    """Count a request that couldn't be read, and write its access line; return the id that it is given."""
    request_id = _new_request_id()
    begin_request(requestId=request_id, method=OTHER_METHOD, route=NO_ROUTE)
    count_request(method=OTHER_METHOD, route=NO_ROUTE, status=error.status, seconds=0)
    end_request(status=error.status, milliseconds=0, code=error.code)
    return request_id


def _end_request(response: Response) -> Response:
    status = response.status_code
    seconds = time.perf_counter() - g.began_at
    response.headers["X-Request-ID"] = g.request_id
    count_request(method=g.method, route=g.route, status=status, seconds=seconds)
    if services().settings.metrics_by_app and request.endpoint in CREATING and (app_id := noted("app")):
        count_create(app_id=str(app_id), route=g.route, status=status)
    end_request(status=status, milliseconds=round(seconds * 1000, 1), code=g.get("error_code"))
    return response


def _new_request_id() -> str:
    return uuid.uuid4().hex


_template = cache(route_template)


def _named_in_path(request: Request) -> dict[str, str]:
    return {_PATH_FACTS[name]: value for name, value in (request.view_args or {}).items() if name in _PATH_FACTS}
