"""A Stripe event: what Stripe said about one of its objects, without secrets, and without who the customer is."""

import hashlib
import json
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

import orjson

from app.errors import ServiceError
from app.services.events.stripe_object import cents_of, dig, id_of, text_of

MAX_NAME_LENGTH = 255
# https://docs.stripe.com/api/versioning
_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(\.[a-z]{1,20})?")
# What PostgreSQL's bigint holds.
MAX_SECONDS = 2**63 - 1

# The ids of facts that are ours begin so; Stripe's begin with `evt_`.
ANSWER_PREFIX = "op_"
OBJECT_PREFIX = "snapshot_"
UNREADABLE_PREFIX = "unreadable_"
# The type of what Stripe listed among events, and is none that we can read.
UNREADABLE = "unreadable"

# Names an object instead of showing it, so it says nothing of a payment; it is stored as it is.
# https://docs.stripe.com/api/v2/core/events/object
THIN_EVENT = "v2.core.event"

# What the fold reads of an answer.
ANSWER_FIELDS = (
    "object", "id", "created", "status", "amount", "amount_total", "currency", "customer", "payment_intent",
    "subscription", "invoice", "latest_charge", "amount_received", "charge", "reason", "balance_transaction",
)  # fmt: skip

# And of a try that failed.
ERROR_FIELDS = ("charge", "code", "message")

# The type of the event that tells of an object's state: by what the object is, and by its status.
_TYPES_OF_STATES = {
    "payment_intent": {
        "succeeded": "payment_intent.succeeded",
        "canceled": "payment_intent.canceled",
        "processing": "payment_intent.processing",
        "requires_action": "payment_intent.requires_action",
        "requires_capture": "payment_intent.amount_capturable_updated",
    },
    "checkout.session": {"complete": "checkout.session.completed", "expired": "checkout.session.expired"},
}

# Secrets, and what may hold one: the page of a bank, the details of a challenge.
SECRET_FIELDS = ("client_secret", "next_action")
# Who the customer is, and with what they pay; docs/privacy.md. No fold reads any of it, in any object of Stripe's.
PERSONAL_FIELDS = (
    "address", "billing_address", "billing_details", "collected_information", "comment", "custom_fields",
    "customer_address", "customer_details", "customer_email", "customer_name", "customer_phone",
    "customer_shipping", "customer_tax_ids", "email", "evidence", "name", "payment_method_details", "phone",
    "receipt_email", "shipping", "shipping_address", "shipping_details", "source", "tax_ids",
)  # fmt: skip
_LEFT_OUT = frozenset((*SECRET_FIELDS, *PERSONAL_FIELDS))
# What these refer to is the customer's own: of an expanded one, the id is kept.
PERSONAL_REFERENCES = ("customer", "payment_method")
# Of an object, in levels: far more than any of Stripe's has, and less than orjson writes, which is 254.
MAX_DEPTH = 200
# What jsonb can't hold, and what stands for it.
_NUL, _REPLACEMENT = "\x00", "\ufffd"


class NotAnEvent(ServiceError):
    """A signed body that is no Stripe event."""

    status = 400
    code = "not_a_stripe_event"

    def __init__(self) -> None:
        super().__init__("The body is not a Stripe event")


@dataclass(frozen=True)
class Event:
    """A Stripe event; `created` is in seconds since 1970, `previous` holds what the object's changed fields were.

    :param account: whose it is, where a webhook of Connect or of an organisation says so
    :param api_version: in which version of Stripe's API a webhook told it
    """

    id: str
    type: str
    created: int
    object: Mapping[str, Any]
    previous: Mapping[str, Any] | None = None
    account: str | None = None
    api_version: str | None = None

    @property
    def kind(self) -> str:
        """What the object is, by its own word: an id's prefix doesn't tell (a Link refund is `pyr_`)."""
        return str(self.object.get("object", ""))

    @property
    def is_snapshot(self) -> bool:
        """Whether it tells what an object was when we read it, and not when that came to be."""
        return self.id.startswith(OBJECT_PREFIX)

    @property
    def is_ours(self) -> bool:
        """Whether we have made it, of an answer or of an object that we read."""
        return self.is_snapshot or self.id.startswith(ANSWER_PREFIX)


def parse_event(body: bytes) -> Event:
    """Read an event as Stripe sent it to a webhook endpoint.

    :raises NotAnEvent: when it isn't one.
    """
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise NotAnEvent from None
    read = read_event(event)
    if read.is_snapshot:
        raise NotAnEvent
    account, version = id_of(event.get("context")) or id_of(event.get("account")), str(event.get("api_version"))
    return replace(read, account=account, api_version=version if _VERSION.fullmatch(version) else None)


def read_event(event: object) -> Event:
    """Read an event whose JSON is read already.

    :raises NotAnEvent: when it isn't one.
    """
    if not isinstance(event, Mapping):
        raise NotAnEvent
    is_thin = event.get("object") == THIN_EVENT
    created = _written_time(event.get("created")) if is_thin else _time(event.get("created"))
    stripe_object = event if is_thin else dig(event, "data", "object")
    previous = None if is_thin else dig(event, "data", "previous_attributes")
    genuine = (
        _is_name(event.get("id"))
        and not str(event["id"]).startswith((ANSWER_PREFIX, UNREADABLE_PREFIX))
        and _is_name(event.get("type"))
        and isinstance(stripe_object, Mapping)
        # The object of a `balance.available` has no id, and that of an `invoice.upcoming` may have null.
        and isinstance(stripe_object.get("id"), str | None)
    )
    if not genuine or created is None:
        raise NotAnEvent
    try:
        shown = storable(previous) if isinstance(previous, Mapping) else None
        return Event(str(event["id"]), str(event["type"]), created, storable(stripe_object), shown)
    except ValueError:
        raise NotAnEvent from None


def _time(seconds: object) -> int | None:
    # True is an int.
    is_time = isinstance(seconds, int) and not isinstance(seconds, bool) and abs(seconds) <= MAX_SECONDS
    return cast(int, seconds) if is_time else None


def _written_time(text: object) -> int | None:
    """A time as Stripe's newer API writes it, in seconds since 1970."""
    try:
        return int(datetime.fromisoformat(str(text)).timestamp())
    except (OverflowError, ValueError):
        return None


def answer_event(upstream_key: str, event_type: str, answer: Mapping[str, Any], *, created: int | None = None) -> Event:
    """What Stripe answered to an operation, as a fact beside those that it tells by event.

    Only what the fold reads of it is kept: whatever else the answer says can't be in its way.

    :param upstream_key: the operation's id and attempt
    :param answer: the object that Stripe answered with
    :param created: when that came to be, where it was not with the object itself
    """
    told: dict[str, Any] = {name: _plain(answer.get(name)) for name in ANSWER_FIELDS if name in answer}
    if isinstance(error := answer.get("last_payment_error"), Mapping):
        told["last_payment_error"] = {name: _plain(error.get(name)) for name in ERROR_FIELDS}
    if created is None:
        created = cents_of(answer.get("created")) or 0
    return Event(f"{ANSWER_PREFIX}{upstream_key}", event_type, created, told)


def type_of_state(stripe_object: Mapping[str, Any]) -> str | None:
    """The type of the event by which Stripe tells that an object is in the state it shows; None where none does."""
    types = _TYPES_OF_STATES.get(str(stripe_object.get("object")), {})
    return types.get(str(stripe_object.get("status")))


def unreadable_event(listed: object) -> Event:
    """What Stripe listed among its events and is none, as a fact that says nothing: the same each time it is listed.

    :param listed: JSON as it came; what is too deep to be kept is left out
    """
    # orjson writes nothing that is too deep to be kept.
    digest = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
    try:
        kept = storable(listed)
    except ValueError:
        kept = None
    return Event(f"{UNREADABLE_PREFIX}{digest}", UNREADABLE, int(time.time()), {"listed": kept})


def _plain(value: object) -> str | int | None:
    """A text, an id or an amount."""
    return id_of(value) or text_of(value) or cents_of(value)


def answer_event_prefix(operation_id: uuid.UUID) -> str:
    """How the ids begin of what Stripe answered to an operation; Stripe's own begin with `evt_`."""
    return f"{ANSWER_PREFIX}{operation_id}:"


def storable(value: Any, levels: int = MAX_DEPTH) -> Any:
    """A copy without secrets, without what is personal, and without what jsonb refuses.

    :param levels: how many objects and lists may lie in each other
    :raises ValueError: when it is too deep
    """
    if not isinstance(value, Mapping | list):
        return value.replace(_NUL, _REPLACEMENT) if isinstance(value, str) else value
    if levels == 0:
        raise ValueError("too deep")
    if isinstance(value, list):
        return [storable(inner, levels - 1) for inner in value]
    return {
        key.replace(_NUL, _REPLACEMENT): storable(_impersonal(key, inner), levels - 1)
        for key, inner in value.items()
        if key not in _LEFT_OUT
    }


def _impersonal(key: str, value: Any) -> Any:
    return id_of(value) if key in PERSONAL_REFERENCES and isinstance(value, Mapping) else value


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH and _NUL not in value
