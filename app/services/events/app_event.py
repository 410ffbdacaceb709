"""What an app is told of a payment or a subscription that has changed: a pure function of what it was and is."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from app.models import AppEventType, PaymentStatus
from app.services.events.projection import DISPUTE_CLOSED, ENDED_RANK, REFUND_RANK, PaymentState
from app.services.events.subscription import ENDED, SubscriptionState

# Stripe has made nothing for it yet.
UNMADE = (PaymentStatus.CREATING, PaymentStatus.REJECTED)

# What is told of a payment that comes to a status; the others are told by what became of the money.
TYPE_OF_STATUS = {
    PaymentStatus.PROCESSING: AppEventType.PAYMENT_PROCESSING,
    PaymentStatus.PENDING: AppEventType.PAYMENT_PROCESSING,
    PaymentStatus.REQUIRES_ACTION: AppEventType.PAYMENT_REQUIRES_ACTION,
    PaymentStatus.REQUIRES_CAPTURE: AppEventType.PAYMENT_REQUIRES_CAPTURE,
    PaymentStatus.FAILED: AppEventType.PAYMENT_FAILED,
    PaymentStatus.CANCELED: AppEventType.PAYMENT_CANCELED,
    PaymentStatus.EXPIRED: AppEventType.PAYMENT_EXPIRED,
}

# Of a payment as it is shown, what changes with its state.
SHOWN_STATE = (
    "status", "amount_in_cents", "currency", "stripe_payment_intent_id", "stripe_checkout_session_id",
    "stripe_subscription_id", "stripe_invoice_id", "stripe_customer_id", "amount_received_in_cents",
    "amount_refunded_in_cents",
)  # fmt: skip

# Of subscriptions: what some statuses have in common, and what callers change.
STARTED = ("trialing", "active")
OWING = ("past_due", "unpaid")
UNSTARTED = (None, "incomplete")
CHANGEABLE = ("items", "cancel_at", "cancel_at_period_end")

# A refund or a dispute whose status is another: what it was, None where it is new, and what it is.
Change = tuple[str | None, str]


def types_of_change(before: Any, after: PaymentState) -> list[AppEventType]:
    """The types of the events that tell of a change, in their order; none where apps are told nothing of it.

    :param before: has the columns of a `PaymentState`
    """
    told = {*_types_of_status(before, after), *_types_of_refunds(before, after), *_types_of_disputes(before, after)}
    return [each for each in AppEventType if each in told]


def data_of_change(before: Any, after: PaymentState) -> dict[str, Any]:
    """The facts of an event: the payment's state, and what of it was another before."""
    was, now = _shown(before), _shown(after)
    return {"payment": now, "previous": {name: was[name] for name in now if was[name] != now[name]}}


def _shown(state: Any) -> dict[str, Any]:
    returned = state.amount_refunded_in_cents + state.amount_lost_in_cents
    return {**{name: getattr(state, name) for name in SHOWN_STATE}, "amount_returned_in_cents": returned}


def _types_of_status(before: Any, after: PaymentState) -> Iterable[AppEventType]:
    if before.status in UNMADE and after.status not in UNMADE:
        yield AppEventType.PAYMENT_CREATED
    if before.status != after.status and after.status in TYPE_OF_STATUS:
        yield TYPE_OF_STATUS[PaymentStatus(after.status)]
    is_paid_anew = before.success_count == 0 or before.amount_received_in_cents != after.amount_received_in_cents
    if after.success_count > 0 and is_paid_anew:
        yield AppEventType.PAYMENT_SUCCEEDED


def _types_of_refunds(before: Any, after: PaymentState) -> Iterable[AppEventType]:
    changes = _changes(before.refund_statuses, after.refund_statuses, count=before.refund_count)
    grown_by = after.amount_refunded_in_cents - before.amount_refunded_in_cents
    if grown_by > 0 or any(was is None and not _has_come_back(now) for was, now in changes):
        yield AppEventType.PAYMENT_REFUNDED
    if grown_by < 0 or any(_has_come_back(now) and not _has_come_back(was) for was, now in changes):
        yield AppEventType.PAYMENT_REFUND_FAILED


def _types_of_disputes(before: Any, after: PaymentState) -> Iterable[AppEventType]:
    changes = _changes(before.dispute_statuses, after.dispute_statuses, count=before.dispute_count)
    grown_by = after.amount_disputed_in_cents - before.amount_disputed_in_cents
    if grown_by > 0 or any(was is None or (_is_closed(was) and not _is_closed(now)) for was, now in changes):
        yield AppEventType.PAYMENT_DISPUTED
    if grown_by < 0 or any(_is_closed(now) and not _is_closed(was) for was, now in changes):
        yield AppEventType.PAYMENT_DISPUTE_CLOSED


def _changes(before: Mapping[str, str], after: Mapping[str, str], *, count: int) -> list[Change]:
    """What is another now, as far as that is known: a row that a former release has written only counts."""
    if len(before) < count:
        return []
    return [(before.get(each), status) for each, status in after.items() if before.get(each) != status]


def _has_come_back(refund_status: str | None) -> bool:
    return REFUND_RANK.get(refund_status or "") == ENDED_RANK


def _is_closed(dispute_status: str | None) -> bool:
    return dispute_status in DISPUTE_CLOSED


def types_of_subscription_change(before: Any, after: SubscriptionState) -> list[AppEventType]:
    """The types of the events that tell of a change, in their order; none where apps are told nothing of it.

    :param before: has the columns of a `SubscriptionState`; its status is None where nothing was known
    """
    if after.status in ENDED:
        return [] if before.status in ENDED else [AppEventType.SUBSCRIPTION_ENDED]
    if before.status in UNSTARTED:
        return [AppEventType.SUBSCRIPTION_STARTED] if after.status in STARTED else []
    return list(_types_of_running(before, after))


def _types_of_running(before: Any, after: SubscriptionState) -> Iterable[AppEventType]:
    if after.is_trial_ending and not before.is_trial_ending:
        yield AppEventType.SUBSCRIPTION_TRIAL_ENDING
    starts = (before.current_period_start, after.current_period_start)
    if None not in starts and starts[0] < starts[1]:
        yield AppEventType.SUBSCRIPTION_RENEWED
    if after.status in OWING and before.status not in OWING:
        yield AppEventType.SUBSCRIPTION_PAST_DUE
    now = columns_of(after)
    is_paused_or_resumed = (before.status == "paused") != (after.status == "paused")
    if is_paused_or_resumed or any(getattr(before, name) != now[name] for name in CHANGEABLE):
        yield AppEventType.SUBSCRIPTION_CHANGED


def columns_of(state: SubscriptionState) -> dict[str, Any]:
    """A subscription's state as its row holds it."""
    columns = asdict(state)
    return columns | {"items": list(columns["items"])}


def data_of_subscription_change(before: Any, after: SubscriptionState) -> dict[str, Any]:
    """The facts of an event: the subscription's state, and what of it was another before."""
    now = {name: _written(value) for name, value in columns_of(after).items()}
    was = {column.name: _written(getattr(before, column.name)) for column in fields(SubscriptionState)}
    return {"subscription": now, "previous": {name: was[name] for name in now if was[name] != now[name]}}


def _written(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
