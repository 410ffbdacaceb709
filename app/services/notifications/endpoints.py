"""Where apps want to be told: endpoints, and their secrets, which are in key-service and nowhere else."""

import base64
import secrets
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Text, Uuid, bindparam, delete, func, insert, null, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

from app.database import Batch
from app.errors import InvalidRequest, NoStripeKey, NotFound
from app.models import AppEvent, AppEventType, Delivery, DeliveryState, EventEndpoint
from app.services import Services
from app.services.events.outbox import ADD_EVENT, told_of_ping
from app.services.notifications.app_events import AGAIN, undelivered
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.keys import provider_of_endpoint

# Each costs every webhook of its app a row.
MAX_ENDPOINTS = 16
# Of Standard Webhooks, 24 to 64. https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
SECRET_BYTES = 32
SECRET_PREFIX = "whsec_"  # noqa: S105 -- what each begins with
# How long the secret before signs as well.
OVERLAP = timedelta(days=1)
PAGE = 500
# Of an endpoint of which nothing is known.
FIRST_CONCURRENCY = 4

ALWAYS = datetime.min.replace(tzinfo=UTC)

# What an app can be told, and so may ask for.
EVENT_TYPES = tuple(str(each) for each in AppEventType if each is not AppEventType.PING)

_app_id: Any = bindparam("app_id", type_=Text)
_is_own = (EventEndpoint.id == bindparam("endpoint_id", type_=Uuid)) & or_(
    _app_id.is_(None), EventEndpoint.app_id == _app_id
)
_LIST = Batch(
    select(
        EventEndpoint.id.label("endpoint_id"),
        EventEndpoint.url,
        EventEndpoint.types,
        EventEndpoint.disabled_at,
        EventEndpoint.failing_since,
        EventEndpoint.created_at,
    )
    .where(EventEndpoint.app_id == bindparam("app_id"))
    .order_by(EventEndpoint.created_at, EventEndpoint.id)
)
_ADD = Batch(
    insert(EventEndpoint)
    .values(
        id=bindparam("endpoint_id"),
        app_id=bindparam("app_id"),
        url=bindparam("url"),
        types=bindparam("types", type_=ARRAY(Text)),
    )
    .returning(EventEndpoint.id)
)
_FIND = Batch(select(EventEndpoint.id).where(_is_own))
_DISABLE = Batch(update(EventEndpoint).where(_is_own).values(disabled_at=func.now()).returning(EventEndpoint.id))
_ENABLE = Batch(
    update(EventEndpoint)
    .where(_is_own)
    .values(
        disabled_at=null(),
        failing_since=null(),
        paused_until=null(),
        concurrency=FIRST_CONCURRENCY,
    )
    .returning(EventEndpoint.id)
)
_ROTATE = Batch(
    update(EventEndpoint)
    .where(_is_own)
    .values(old_secret_until=func.now() + bindparam("overlap"))
    .returning(EventEndpoint.id)
)

_some = (
    select(Delivery.event_number, Delivery.endpoint_id)
    .where(Delivery.endpoint_id == bindparam("endpoint_id", type_=Uuid))
    .limit(PAGE)
)
_DELETE_DELIVERIES = Batch(
    delete(Delivery)
    .where(tuple_(Delivery.event_number, Delivery.endpoint_id).in_(_some))
    .returning(Delivery.event_number)
)
_DELETE = Batch(delete(EventEndpoint).where(_is_own))

_PING = Batch(
    ADD_EVENT,
    insert(Delivery).from_select(
        ["event_number", "endpoint_id", "subject"],
        select(AppEvent.number, bindparam("endpoint_id", type_=Uuid), bindparam("subject", type_=Text)).where(
            AppEvent.id == bindparam("event_id", type_=Uuid)
        ),
    ),
)

_dead = (
    select(Delivery.event_number, Delivery.endpoint_id, Delivery.subject)
    .where(
        Delivery.endpoint_id == bindparam("endpoint_id", type_=Uuid),
        Delivery.state == DeliveryState.DEAD,
        Delivery.ended_at >= bindparam("since", type_=TIMESTAMP(timezone=True)),
    )
    .order_by(Delivery.ended_at, Delivery.event_number)
    .limit(PAGE)
    .cte("dead")
)
# As for one event: what is in hand of the same subjects is waited for.
_REDELIVER_DEAD = Batch(
    select(Delivery.event_number)
    .where(
        Delivery.endpoint_id == bindparam("endpoint_id", type_=Uuid),
        Delivery.subject.in_(select(_dead.c.subject)),
        undelivered(Delivery),
    )
    .order_by(Delivery.event_number)
    .with_for_update(of=Delivery),
    update(Delivery)
    .where(tuple_(Delivery.event_number, Delivery.endpoint_id).in_(select(_dead.c.event_number, _dead.c.endpoint_id)))
    .values(AGAIN)
    .returning(Delivery.event_number),
)


def create_endpoint(
    app_id: str, url: str, types: Sequence[str] | None = None, *, services: Services, context: CallContext
) -> dict[str, Any]:
    """Tell an app at a URL from now on; its secret is shown here, and when another takes its place.

    No endpoint is ever without its secret: that is stored first.

    :param types: of what it is told; None for all, also those that are still to come
    :raises InvalidRequest: when the URL may not be told, or the app has many endpoints already.
    :raises UpstreamError: when key-service doesn't store the secret.
    """
    services.event_endpoints.check(url, context.deadline)
    if len(services.database.run(_LIST, app_id=app_id)) >= MAX_ENDPOINTS:
        raise InvalidRequest(form_errors=[f"An app has at most {MAX_ENDPOINTS} endpoints: delete one."])
    endpoint_id, secret = uuid.uuid4(), _new_secret()
    services.keys.store(provider_of_endpoint(endpoint_id), app_id, secret, context)
    wanted = None if types is None else list(types)
    services.database.run(_ADD, endpoint_id=endpoint_id, app_id=app_id, url=url, types=wanted)
    return {"success": True, "endpoint_id": endpoint_id, "secret": secret}


def list_endpoints(app_id: str, *, services: Services) -> list[dict[str, Any]]:
    """The endpoints of an app, the first first, without their secrets."""
    return [
        {
            **row._mapping,
            "types": row.types or EVENT_TYPES,
            "state": "enabled" if row.disabled_at is None else "disabled",
        }
        for row in services.database.run(_LIST, app_id=app_id)
    ]


def delete_endpoint(endpoint_id: str, *, app_id: str, services: Services, context: CallContext) -> None:
    """Tell an app nothing more at an endpoint, and forget what was on its way there.

    It goes step by step, each of which may be done again: a deletion that failed is asked for once more.

    :raises NotFound: when the app has no such endpoint.
    :raises UpstreamError: when key-service doesn't delete the secret.
    """
    own = _own(endpoint_id, app_id)
    _require(services.database.run(_DISABLE, **own))
    services.keys.delete(provider_of_endpoint(own["endpoint_id"]), app_id, context)
    while services.database.run(_DELETE_DELIVERIES, endpoint_id=own["endpoint_id"]):
        pass
    services.database.run(_DELETE, **own)


def enable_endpoint(endpoint_id: str, *, app_id: str, services: Services) -> None:
    """Tell an app again at an endpoint that was disabled, first of all what was on its way then.

    :raises NotFound: when the app has no such endpoint.
    """
    _require(services.database.run(_ENABLE, **_own(endpoint_id, app_id)))


def rotate_secret(endpoint_id: str, *, app_id: str, services: Services, context: CallContext) -> dict[str, Any]:
    """Sign with another secret from now on, and for a day with the one before as well.

    :raises NotFound: when the app has no such endpoint.
    :raises UpstreamError: when key-service doesn't tell the one before, or doesn't store the new one.
    """
    own = _own(endpoint_id, app_id)
    _require(services.database.run(_ROTATE, **own, overlap=OVERLAP))
    provider, secret = provider_of_endpoint(own["endpoint_id"]), _new_secret()
    try:
        former = services.keys.ask(provider, app_id, context).partition(",")[0]
    except NoStripeKey:
        former = ""
    services.keys.store(provider, app_id, f"{secret},{former}" if former else secret, context)
    return {"success": True, "secret": secret}


def ping_endpoint(endpoint_id: str, *, app_id: str, services: Services) -> None:
    """Send an endpoint an event that tells of nothing.

    :raises NotFound: when the app has no such endpoint.
    """
    own = _own(endpoint_id, app_id)
    _require(services.database.run(_FIND, **own))
    services.database.run(_PING, **own, **told_of_ping(uuid.uuid4()))


def redeliver_dead(
    endpoint_id: str, *, app_id: str | None = None, since: datetime = ALWAYS, services: Services
) -> None:
    """Send an endpoint again what was given up since then.

    :raises NotFound: when there is no such endpoint, or it isn't the app's.
    """
    own = _own(endpoint_id, app_id)
    _require(services.database.run(_FIND, **own))
    while services.database.run(_REDELIVER_DEAD, endpoint_id=own["endpoint_id"], since=since):
        pass


def _own(endpoint_id: str, app_id: str | None) -> dict[str, Any]:
    try:
        return {"endpoint_id": uuid.UUID(endpoint_id), "app_id": app_id}
    except ValueError:
        raise NotFound("Endpoint not found") from None


def _require(found: Sequence[Any]) -> None:
    if not found:
        raise NotFound("Endpoint not found")


def _new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
