"""What a subscription has become: a pure function of the set of its events, whatever order they came in and how often.

Its status goes back and forth, so the latest event tells; but Stripe's times are whole seconds, and its ids aren't
ordered. Of several events of one second, each says what was before it: the state that none of them comes after is the
last. Where that doesn't tell, the projection isn't settled, and Stripe has to be asked.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from app.services.events.projection import LAST_SECOND
from app.services.events.stripe_event import Event
from app.services.events.stripe_object import cents_of, currency_of, dig, id_of, text_of

MAX_STATUS_LENGTH = 30
# Nothing comes after these. https://docs.stripe.com/api/subscriptions/object#subscription_object-status
ENDED = ("canceled", "incomplete_expired")
DELETED = "customer.subscription.deleted"
TRIAL_ENDING = "customer.subscription.trial_will_end"


@dataclass(frozen=True, kw_only=True)
class SubscriptionItem:
    """What is subscribed to, how many of it, and for how much each."""

    item_id: str | None
    price_id: str | None
    quantity: int | None
    unit_amount_in_cents: int | None
    currency: str | None
    interval: str | None
    interval_count: int | None


@dataclass(frozen=True, kw_only=True)
class SubscriptionState:
    """What a subscription has become, by the names of its columns."""

    status: str
    customer_id: str | None
    items: tuple[SubscriptionItem, ...]
    current_period_start: datetime | None
    current_period_end: datetime | None
    cancel_at: datetime | None
    cancel_at_period_end: bool
    canceled_at: datetime | None
    ended_at: datetime | None
    trial_end: datetime | None
    created_at: datetime
    # Whether Stripe has told that its trial ends soon.
    is_trial_ending: bool = False


@dataclass(frozen=True, kw_only=True)
class SubscriptionProjection:
    """A subscription's state, and whether its events settle it."""

    state: SubscriptionState
    is_settled: bool


@dataclass(frozen=True)
class _Told:
    """What an event says of a subscription, and what was before it, where it says so."""

    event: Event
    state: SubscriptionState
    before: SubscriptionState | None

    @property
    def place(self) -> tuple[int, int]:
        """When it was so. What was read is dated by a second that had passed; an answer by the one in which it came."""
        rank = 2 if self.event.is_snapshot else int(self.event.is_ours)
        return self.event.created, rank

    @property
    def is_end(self) -> bool:
        return self.event.type == DELETED or self.state.status in ENDED


def project_subscription(events: Iterable[Event]) -> SubscriptionProjection | None:
    """Fold a subscription's events into what it has become; None where none of them says so.

    The same event id counts once.
    """
    by_id = {event.id: event for event in events}
    told = [each for event in by_id.values() if (each := _told_by(event)) is not None]
    if not told:
        return None
    told = [each for each in told if each.is_end] or told
    latest = max(each.place for each in told)
    settled = _settle([each for each in told if each.place == latest], told)
    warned_of = {each.state.trial_end for each in told if each.event.type == TRIAL_ENDING}
    is_trial_ending = settled.state.status == "trialing" and settled.state.trial_end in warned_of
    return replace(settled, state=replace(settled.state, is_trial_ending=is_trial_ending))


def _settle(last: list[_Told], told: list[_Told]) -> SubscriptionProjection:
    """What the last of them say, and whether that is one thing.

    What Stripe answered is so only until it tells of something else in that second.
    """
    states = {each.state for each in last}
    ends = states - {each.before for each in last if each.before != each.state}
    state = min(ends or states, key=repr)
    second, rank = last[0].place
    is_confirmed = rank != 1 or any(each.state == state for each in told if each.place == (second, 0))
    return SubscriptionProjection(state=state, is_settled=len(ends) == 1 and is_confirmed)


def _told_by(event: Event) -> _Told | None:
    state = read_subscription(event.object)
    if state is None:
        return None
    return _Told(event, state, read_subscription(_as_before(event.object, event.previous)) if event.previous else None)


def _as_before(shown: Mapping[str, Any], previous: Mapping[str, Any]) -> Mapping[str, Any]:
    """An object as it was before an event. https://docs.stripe.com/api/events/object#event_object-data"""
    before = {**shown, **previous}
    if isinstance(items := previous.get("items"), Mapping) and isinstance(shown.get("items"), Mapping):
        before["items"] = {**shown["items"], **items}
    return before


def read_subscription(shown: Mapping[str, Any]) -> SubscriptionState | None:
    """What a subscription of Stripe's shows; None where it has no status, or it isn't told when it was made."""
    status, created = text_of(shown.get("status")), _time(shown.get("created"))
    if status is None or created is None:
        return None
    listed = dig(shown, "items", "data")
    items = [item for item in listed if isinstance(item, Mapping)] if isinstance(listed, list) else []
    return SubscriptionState(
        status=status[:MAX_STATUS_LENGTH],
        customer_id=id_of(shown.get("customer")),
        items=tuple(map(_read_item, items)),
        current_period_start=min(_times("current_period_start", shown, items), default=None),
        current_period_end=max(_times("current_period_end", shown, items), default=None),
        cancel_at=_time(shown.get("cancel_at")),
        cancel_at_period_end=shown.get("cancel_at_period_end") is True,
        canceled_at=_time(shown.get("canceled_at")),
        ended_at=_time(shown.get("ended_at")),
        trial_end=_time(shown.get("trial_end")),
        created_at=created,
    )


def _read_item(item: Mapping[str, Any]) -> SubscriptionItem:
    price = item.get("price")
    return SubscriptionItem(
        item_id=id_of(item),
        price_id=id_of(price),
        quantity=cents_of(item.get("quantity")),
        unit_amount_in_cents=cents_of(dig(price, "unit_amount")),
        currency=currency_of(dig(price, "currency")),
        interval=text_of(dig(price, "recurring", "interval")),
        interval_count=cents_of(dig(price, "recurring", "interval_count")),
    )


def _times(name: str, shown: Mapping[str, Any], items: list[Mapping[str, Any]]) -> list[datetime]:
    """The bounds of the current period: its items', or until 2025-03-31 the subscription's own.

    https://docs.stripe.com/changelog/basil/2025-03-31/deprecate-subscription-current-period-start-and-end
    """
    of_items = [time for item in items if (time := _time(item.get(name))) is not None]
    own = _time(shown.get(name))
    return of_items or ([] if own is None else [own])


def _time(seconds: object) -> datetime | None:
    read = cents_of(seconds)
    return None if read is None else datetime.fromtimestamp(min(read, LAST_SECOND), UTC)
