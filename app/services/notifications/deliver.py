"""Delivery: events are claimed for the endpoints that are due, and sent side by side, each until it is taken or dead.

| a delivery   | statement            | then                                                                  |
|--------------|----------------------|-----------------------------------------------------------------------|
| waiting, due | `_CLAIM`             | sending, for as long as its lease; or put off, behind what is ahead    |
| sending      | `_DONE`              | done; what it was ahead of is due                                      |
| sending      | `_RETRY`             | waiting, until its next try                                            |
| sending      | `_DEAD`              | dead, after the last; what it was ahead of is due                      |
| sending      | none: its lease ends | due again: it is sent once more, under the same id                     |

Of one subject, a payment or a subscription, an endpoint is sent one event at a time, in the order of their numbers.
Many threads send. One notes what has ended meanwhile: all that was taken in one transaction.
"""

import binascii
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    Integer,
    Interval,
    Text,
    Uuid,
    all_,
    any_,
    bindparam,
    case,
    cast,
    func,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import aliased
from standardwebhooks import Webhook

from app.database import Batch
from app.errors import NoStripeKey, UpstreamError, is_lock_conflict
from app.logs import begin_request
from app.models import AppEvent, Delivery, DeliveryState, EventEndpoint
from app.services import Services
from app.services.notifications.app_events import EVENT, Shown, show_events, undelivered
from app.services.upstreams.call_context import CallContext, Deadline
from app.services.upstreams.event_endpoints import seconds_to_wait
from app.services.upstreams.keys import provider_of_endpoint

log = logging.getLogger(__name__)

# At once, of one worker. Endpoints that fail have half of them, so that they delay none that doesn't.
SENDERS = 64
MOST_TO_ONE = 8
# Of one exchange, from the look at the name to the end of the answer.
SEND_SECONDS = 10.0
# For the secret, the exchange, and what is then written.
LEASE = timedelta(seconds=30)
# How soon what is new is seen while others are being sent.
LOOK_SECONDS = 0.25
# How long what has ended waits for more, to be noted with it: a transaction for many costs little more than for one.
LINGER_SECONDS = 0.02
# Fewer free senders than this wait for others to be free, or for the next look: a claim of many costs as one of few.
WORTH_A_CLAIM = SENDERS // 4

# How long after each failed try the next one is made. https://www.standardwebhooks.com
PAUSES = tuple(
    timedelta(seconds=seconds) for seconds in (5, 300, 1800, *(hours * 3600 for hours in (2, 5, 10, 14, 20, 24)))
)
JITTER = 0.2
LONGEST_PAUSE = timedelta(hours=24)
# An endpoint that has taken nothing for that long is told nothing more.
DISABLED_AFTER = timedelta(days=5)

GONE = 410
# The endpoint asks for less.
ASKS_FOR_LESS = (429, 503)
MAX_BODY_BYTES = 20 * 1024

Write = Callable[[Shown], Mapping[str, Any]]

_A_MOMENT = timedelta(seconds=1)

_next = (
    select(Delivery.next_attempt_at)
    .where(Delivery.endpoint_id == EventEndpoint.id, undelivered(Delivery), Delivery.next_attempt_at <= func.now())
    .order_by(Delivery.next_attempt_at)
    .limit(1)
    .lateral("due")
)
# The endpoints that have waited the longest come first.
_DUE = Batch(
    select(EventEndpoint.id, EventEndpoint.concurrency)
    .join(_next, true())
    .where(
        EventEndpoint.disabled_at.is_(None),
        func.coalesce(EventEndpoint.paused_until <= func.now(), True),
        EventEndpoint.failing_since.is_not(None) == bindparam("are_failing", type_=Boolean),
        EventEndpoint.id != all_(bindparam("full", type_=ARRAY(Uuid))),
    )
    .order_by(_next.c.next_attempt_at)
    .limit(bindparam("limit"))
)

_place = select(
    func.unnest(bindparam("endpoint_ids", type_=ARRAY(Uuid))).label("endpoint_id"),
    func.unnest(bindparam("places", type_=ARRAY(Integer))).label("places"),
).subquery("place")
_first = (
    select(Delivery.event_number, Delivery.endpoint_id, Delivery.subject)
    .where(Delivery.endpoint_id == _place.c.endpoint_id, undelivered(Delivery), Delivery.next_attempt_at <= func.now())
    .order_by(Delivery.next_attempt_at, Delivery.event_number)
    .limit(_place.c.places)
    .with_for_update(skip_locked=True)
    .lateral("first")
)
_ahead = aliased(Delivery)
_is_under_way = (_ahead.state == DeliveryState.SENDING) & (_ahead.next_attempt_at > func.now())
_soon = func.now() + _A_MOMENT
# Until when what is ahead of it, of the same subject, keeps a delivery waiting; nothing where nothing is. What is under
# way may end at any moment, and then calls for the next itself.
_waits_until = (
    select(func.max(case((_is_under_way, _soon), else_=func.greatest(_ahead.next_attempt_at, _soon))).label("until"))
    .where(
        _ahead.endpoint_id == _first.c.endpoint_id,
        _ahead.subject == _first.c.subject,
        undelivered(_ahead),
        _ahead.event_number != _first.c.event_number,
        or_(_ahead.event_number < _first.c.event_number, _is_under_way),
    )
    .lateral("ahead")
)
_chosen = (
    select(_first.c.event_number, _first.c.endpoint_id, _waits_until.c.until)
    .select_from(_place.join(_first, true()).join(_waits_until, true()))
    .cte("chosen")
    # It locks as many as it chooses, so it is read once.
    .prefix_with("MATERIALIZED")
)
_is_first = _chosen.c.until.is_(None)
_CLAIM = Batch(
    update(Delivery)
    .where(Delivery.event_number == _chosen.c.event_number, Delivery.endpoint_id == _chosen.c.endpoint_id)
    .values(
        state=case((_is_first, DeliveryState.SENDING), else_=DeliveryState.WAITING),
        attempts=Delivery.attempts + case((_is_first, 1), else_=0),
        next_attempt_at=func.coalesce(_chosen.c.until, func.now() + LEASE),
        lease_token=bindparam("token", type_=Uuid),
    )
    .returning(Delivery.event_number, Delivery.endpoint_id, Delivery.state)
)
_READ = Batch(
    select(
        *EVENT,
        Delivery.endpoint_id,
        Delivery.subject,
        Delivery.attempts,
        EventEndpoint.app_id,
        EventEndpoint.url,
        func.coalesce(EventEndpoint.old_secret_until > func.now(), False).label("has_two_secrets"),
    )
    .join(AppEvent, AppEvent.number == Delivery.event_number)
    .join(EventEndpoint, EventEndpoint.id == Delivery.endpoint_id)
    .where(
        Delivery.event_number == any_(bindparam("numbers", type_=ARRAY(BigInteger))),
        Delivery.lease_token == bindparam("token", type_=Uuid),
        Delivery.state == DeliveryState.SENDING,
    )
)

# Deliveries in our hands, and what the try of each came to.
_tried = select(
    func.unnest(bindparam("numbers", type_=ARRAY(BigInteger))).label("number"),
    func.unnest(bindparam("endpoint_ids", type_=ARRAY(Uuid))).label("endpoint_id"),
    func.unnest(bindparam("subjects", type_=ARRAY(Text))).label("subject"),
    func.unnest(bindparam("tokens", type_=ARRAY(Uuid))).label("token"),
    func.unnest(cast(bindparam("statuses"), ARRAY(Integer))).label("status"),
    func.unnest(cast(bindparam("errors"), ARRAY(Text))).label("error"),
).subquery("tried")
_end = update(Delivery).where(
    Delivery.event_number == _tried.c.number,
    Delivery.endpoint_id == _tried.c.endpoint_id,
    Delivery.lease_token == _tried.c.token,
    Delivery.state == DeliveryState.SENDING,
)
_said = {"last_status": _tried.c.status, "last_error": _tried.c.error}
_call_next = (
    update(Delivery)
    .where(
        Delivery.endpoint_id == _tried.c.endpoint_id,
        Delivery.subject == _tried.c.subject,
        Delivery.state == DeliveryState.WAITING,
        Delivery.event_number > _tried.c.number,
        Delivery.next_attempt_at > func.now(),
    )
    .values(next_attempt_at=func.now())
)
# Of many, in the order of their ids: so no two workers wait for each other.
_lock_endpoints = (
    select(EventEndpoint.id)
    .where(EventEndpoint.id == any_(bindparam("endpoint_ids", type_=ARRAY(Uuid))))
    .order_by(EventEndpoint.id)
    .with_for_update(key_share=True)
)
_takers = select(_tried.c.endpoint_id, func.count().label("count")).group_by(_tried.c.endpoint_id).subquery("takers")
_have_taken = (
    update(EventEndpoint)
    .where(EventEndpoint.id == _takers.c.endpoint_id)
    .values(
        succeeded_count=EventEndpoint.succeeded_count + _takers.c.count,
        failing_since=null(),
        concurrency=func.least(EventEndpoint.concurrency + _takers.c.count, MOST_TO_ONE),
    )
)
_is_over = bindparam("is_gone", type_=Boolean) | (EventEndpoint.failing_since < func.now() - DISABLED_AFTER)
# What comes back is whether the endpoint is disabled from this failure on.
_has_failed = (
    update(EventEndpoint)
    .where(EventEndpoint.id == _tried.c.endpoint_id)
    .values(
        failed_count=EventEndpoint.failed_count + 1,
        failing_since=func.coalesce(EventEndpoint.failing_since, func.now()),
        concurrency=func.greatest(EventEndpoint.concurrency / 2, 1),
        paused_until=func.greatest(EventEndpoint.paused_until, func.now() + bindparam("pause", type_=Interval)),
        disabled_at=case(
            (_is_over, func.coalesce(EventEndpoint.disabled_at, func.now())), else_=EventEndpoint.disabled_at
        ),
    )
    .returning((EventEndpoint.disabled_at == func.now()).label("is_disabled_now"))
)
_DONE = Batch(
    _lock_endpoints, _end.values(state=DeliveryState.DONE, ended_at=func.now(), **_said), _call_next, _have_taken
)
_DEAD = Batch(_end.values(state=DeliveryState.DEAD, ended_at=func.now(), **_said), _call_next, _has_failed)
_until = func.now() + bindparam("delay", type_=Interval)
_RETRY = Batch(_end.values(state=DeliveryState.WAITING, next_attempt_at=_until, **_said), _has_failed)
_PUT_BACK = Batch(
    _end.values(
        state=DeliveryState.WAITING,
        next_attempt_at=_until,
        attempts=Delivery.attempts - 1,
        last_error=_tried.c.error,
    )
)


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A delivery in our hands, with what it takes to send it."""

    event: Shown
    endpoint_id: uuid.UUID
    subject: str
    attempts: int
    app_id: str
    url: str
    has_two_secrets: bool
    token: uuid.UUID
    is_failing: bool


@dataclass(frozen=True)
class Tried:
    """What a try came to; an error says why it failed.

    :param pause: how long the endpoint asks to be left alone
    :param is_sent: no when it could not be signed, which is no failure of the endpoint's
    """

    claimed: Claimed
    status: int | None = None
    error: str | None = None
    pause: timedelta = timedelta()
    is_sent: bool = True


@dataclass(frozen=True)
class Delivered:
    """What a try came to, and whether the endpoint is disabled by it."""

    claimed: Claimed
    status: int | None = None
    error: str | None = None
    is_disabled: bool = False


class _Unsigned(Exception):
    """key-service could not be asked for the secret."""


def deliver_events(services: Services, write: Write, *, command: str) -> Iterator[Delivered]:
    """Send what is due, side by side, until there is none; yield what each try came to, as it ends.

    When the end is asked for, nothing more is claimed, and what is being sent is waited for.

    :param write: makes of an event what an endpoint is sent
    """
    in_hand: dict[Future[Tried], Claimed] = {}
    ended: SimpleQueue[Future[Tried]] = SimpleQueue()
    looked_at = -LOOK_SECONDS
    with ThreadPoolExecutor(SENDERS) as senders:
        while True:
            is_time = time.monotonic() - looked_at >= LOOK_SECONDS
            if (is_time or len(in_hand) <= SENDERS - WORTH_A_CLAIM) and not services.stop.is_set:
                looked_at = time.monotonic()
                for claimed in claim(services, list(in_hand.values())):
                    sending = senders.submit(_try, claimed, services, write, command)
                    in_hand[sending] = claimed
                    sending.add_done_callback(ended.put)
            if not in_hand:
                return
            tries = list(_ended(ended))
            for each in tries:
                del in_hand[each]
            yield from _note([each.result() for each in tries], services)


def _ended(ended: "SimpleQueue[Future[Tried]]") -> Iterator[Future[Tried]]:
    """All that end within moments; the first is waited for, until it is time to look again."""
    try:
        yield ended.get(timeout=LOOK_SECONDS)
        ends_at = time.monotonic() + LINGER_SECONDS
        while True:
            yield ended.get(timeout=max(0.0, ends_at - time.monotonic()))
    except Empty:
        return


def claim(services: Services, in_hand: Sequence[Claimed]) -> list[Claimed]:
    """Claim what is due, as far as there are senders for it: endpoints that fail have half of them."""
    free = SENDERS - len(in_hand)
    failing = SENDERS // 2 - sum(each.is_failing for each in in_hand)
    working = _claim(services, in_hand, are_failing=False, free=free)
    return working + _claim(services, in_hand, are_failing=True, free=min(failing, free - len(working)))


def _claim(services: Services, in_hand: Sequence[Claimed], *, are_failing: bool, free: int) -> list[Claimed]:
    if free <= 0:
        return []
    to_each = Counter(each.endpoint_id for each in in_hand)
    full = [endpoint_id for endpoint_id, count in to_each.items() if count >= MOST_TO_ONE]
    due = services.database.run(_DUE, are_failing=are_failing, full=full, limit=free)
    places = share({row.id: row.concurrency - to_each[row.id] for row in due}, free)
    if not places:
        return []
    token = uuid.uuid4()
    claimed = services.database.run(_CLAIM, endpoint_ids=list(places), places=list(places.values()), token=token)
    numbers = [row.event_number for row in claimed if row.state == DeliveryState.SENDING]
    rows = services.database.run(_READ, numbers=numbers, token=token) if numbers else []
    shown = show_events(rows, services=services)
    return [
        Claimed(
            event=shown[row.number],
            endpoint_id=row.endpoint_id,
            subject=row.subject,
            attempts=row.attempts,
            app_id=row.app_id,
            url=row.url,
            has_two_secrets=row.has_two_secrets,
            token=token,
            is_failing=are_failing,
        )
        for row in rows
    ]


def share(wanted: Mapping[uuid.UUID, int], free: int) -> dict[uuid.UUID, int]:
    """How many of the free senders each endpoint gets: one each, then more, and none of it more than half of them.

    :param wanted: how many more each may have, the one that has waited the longest first
    """
    able = {endpoint_id: count for endpoint_id, count in wanted.items() if count > 0}
    each = max(1, free // max(2, len(able)))
    return {endpoint_id: min(count, each) for endpoint_id, count in list(able.items())[:free]}


def _note(tries: Sequence[Tried], services: Services) -> Iterator[Delivered]:
    """Write down what tries came to: what was taken together, and each failure by itself."""
    if taken := [each for each in tries if each.error is None]:
        yield from _unless_locked(taken, _note_taken, services)
    for each in tries:
        if each.error is not None:
            yield from _unless_locked([each], _note_failed, services)


def _unless_locked(
    tries: Sequence[Tried], note: Callable[[Sequence[Tried], Services], list[Delivered]], services: Services
) -> list[Delivered]:
    """Note tries. What the database doesn't note in time is sent once more when its lease has ended."""
    try:
        return note(tries, services)
    except DBAPIError as error:
        if not is_lock_conflict(error):
            raise
        return [Delivered(each.claimed, error="the database did not note it in time") for each in tries]


def _note_taken(tries: Sequence[Tried], services: Services) -> list[Delivered]:
    services.database.run(_DONE, **_values(tries))
    return [Delivered(each.claimed, each.status) for each in tries]


def _note_failed(tries: Sequence[Tried], services: Services) -> list[Delivered]:
    (tried,) = tries
    claimed = tried.claimed
    if not tried.is_sent:
        services.database.run(_PUT_BACK, **_values(tries), delay=PAUSES[0])
        return [Delivered(claimed, error=tried.error)]
    values = {**_values(tries), "is_gone": tried.status == GONE, "pause": tried.pause or None}
    if claimed.attempts > len(PAUSES):
        rows = services.database.run(_DEAD, **values)
    else:
        pause = PAUSES[claimed.attempts - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 -- no secret
        rows = services.database.run(_RETRY, **values, delay=max(pause, tried.pause))
    is_disabled = bool(rows and rows[0].is_disabled_now)
    if is_disabled:
        begin_request(app=claimed.app_id)
        log.warning("event endpoint %s is disabled: %s", claimed.endpoint_id, tried.error)
    return [Delivered(claimed, tried.status, tried.error, is_disabled)]


def _values(tries: Sequence[Tried]) -> dict[str, Any]:
    claimed = [each.claimed for each in tries]
    return {
        "numbers": [each.event.number for each in claimed],
        "endpoint_ids": [each.endpoint_id for each in claimed],
        "subjects": [each.subject for each in claimed],
        "tokens": [each.token for each in claimed],
        "statuses": [each.status for each in tries],
        "errors": [each.error for each in tries],
    }


def _try(claimed: Claimed, services: Services, write: Write, command: str) -> Tried:
    """Send an event once."""
    begin_request(app=claimed.app_id)
    body = body_of(claimed.event, write)
    try:
        headers = _sign(claimed, body, services, command)
        answer = services.event_endpoints.send(claimed.url, body, headers, Deadline.after(SEND_SECONDS))
    except _Unsigned as error:
        return Tried(claimed, error=str(error), is_sent=False)
    except UpstreamError as error:
        return Tried(claimed, error=error.reason)
    if 200 <= answer.status < 300:
        return Tried(claimed, answer.status)
    seconds = seconds_to_wait(answer.headers) if answer.status in ASKS_FOR_LESS else 0.0
    pause = min(timedelta(seconds=seconds), LONGEST_PAUSE)
    return Tried(claimed, answer.status, f"answered {answer.status}", pause)


def body_of(event: Shown, write: Write) -> bytes:
    """What an endpoint is sent. Metadata for which there is no room is left out: all else fits."""
    body = orjson.dumps(write(event))
    if len(body) > MAX_BODY_BYTES:
        payment = {**event.data["payment"], "metadata": {}}
        body = orjson.dumps(write(replace(event, data={**event.data, "payment": payment})))
    return body


def _sign(claimed: Claimed, body: bytes, services: Services, command: str) -> dict[str, str]:
    """The headers of a signed event: while a secret is rotated, two sign.

    :raises _Unsigned: when key-service can't be asked.
    :raises UpstreamError: when it has no secret of the endpoint, or none that is one.
    """
    event_id, now = str(claimed.event.event_id), datetime.now(UTC)
    try:
        signatures = [Webhook(each).sign(event_id, now, body.decode()) for each in _secrets(claimed, services, command)]
    except (NoStripeKey, binascii.Error, RuntimeError) as error:
        raise UpstreamError("key-service", reason="has no secret in key-service", executed=False) from error
    except UpstreamError as error:
        raise _Unsigned(f"{error.upstream} {error.reason}") from error
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _secrets(claimed: Claimed, services: Services, command: str) -> list[str]:
    provider = provider_of_endpoint(claimed.endpoint_id)
    context = CallContext("COMMAND", command, uuid.uuid4().hex, Deadline.after(SEND_SECONDS))
    kept = services.keys.get(provider, claimed.app_id, context)
    if claimed.has_two_secrets and "," not in kept:
        # From before the rotation.
        services.keys.forget(provider, claimed.app_id, kept)
        kept = services.keys.get(provider, claimed.app_id, context)
    newest, *former = kept.split(",")
    return [newest, *former[:1]] if claimed.has_two_secrets else [newest]
