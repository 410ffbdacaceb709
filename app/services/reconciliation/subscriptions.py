"""Subscriptions of which their events don't tell what they are by now: Stripe is asked, one by one, side by side."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Text, all_, bindparam, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import ARRAY

from app.database import Batch
from app.errors import ServiceError
from app.models import Subscription
from app.services import Services
from app.services.concurrency import InHand, Work, side_by_side
from app.services.events.receive import receive_event
from app.services.events.stripe_event import NotAnEvent
from app.services.operations.operation import reason_of
from app.services.operations.recovery import command_context
from app.services.reconciliation.object_events import ObjectReader

# Whoever has claimed one has asked by then, or has died.
CLAIMED_FOR = timedelta(seconds=60)
PUT_OFF_FOR = timedelta(hours=1)

_due = (
    select(Subscription.app_id, Subscription.id)
    .where(
        Subscription.recheck_at <= func.now(),
        Subscription.app_id != all_(bindparam("full_apps", type_=ARRAY(Text))),
    )
    .order_by(Subscription.recheck_at)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_CLAIM = Batch(
    update(Subscription)
    .where(tuple_(Subscription.app_id, Subscription.id).in_(_due))
    .values(recheck_at=func.now() + CLAIMED_FOR)
    .returning(Subscription.app_id, Subscription.id, Subscription.status)
)
# One that was settled meanwhile has nothing left to ask.
_PUT_OFF = Batch(
    update(Subscription)
    .where(
        Subscription.app_id == bindparam("app_id"),
        Subscription.id == bindparam("subscription_id"),
        Subscription.recheck_at.is_not(None),
    )
    .values(recheck_at=func.now() + PUT_OFF_FOR)
)


@dataclass(frozen=True)
class AskedAbout:
    """A subscription that Stripe was asked about, and why it was put off, where it was."""

    subscription_id: str
    error: str | None = None


def ask_about_subscriptions(services: Services, *, command: str) -> Iterator[AskedAbout]:
    """Ask Stripe what the subscriptions are whose events don't tell; yield each one."""

    def claim(in_hand: InHand) -> Work[AskedAbout] | None:
        claimed = services.database.run(_CLAIM, full_apps=in_hand.apps)
        return Work(claimed[0].app_id, partial(_ask, claimed[0], services, command)) if claimed else None

    yield from side_by_side(claim, stop=services.stop)


def _ask(subscription: Any, services: Services, command: str) -> AskedAbout:
    """Receive what Stripe shows; where nothing is known yet, its invoices first: what it is ends the asking."""
    reader = ObjectReader(
        subscription.app_id, services.stripe, lambda: command_context(command, services), int(time.time())
    )
    try:
        if subscription.status is None:
            for event in reader.read_invoices(subscription.id, since=None):
                receive_event(event, app_id=subscription.app_id, services=services)
        for event in reader.read_subscription(subscription.id):
            receive_event(event, app_id=subscription.app_id, services=services)
    except (ServiceError, NotAnEvent) as error:
        services.database.run(_PUT_OFF, app_id=subscription.app_id, subscription_id=subscription.id)
        return AskedAbout(subscription.id, reason_of(error) or error.sentence)
    return AskedAbout(subscription.id)
