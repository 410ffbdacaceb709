"""Lives of subscriptions: what time, a bank, the app and its customer do, and the events by which Stripe tells of it.

The model keeps a subscription as plain variables that each action sets, as Stripe does; it folds nothing.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from app.services.events.stripe_event import Event
from tests.stripe_shapes import ApiVersion, Shape

SUBSCRIPTION, CUSTOMER, ITEM = "sub_1", "cus_1", "si_1"
BORN_AT = 1_700_000_000
MONTH = 30 * 24 * 3600
PERIOD = ("current_period_start", "current_period_end")


@dataclass
class SubscriptionLife:
    """A subscription as Stripe sees it, and everything that Stripe said of it.

    `quick` things follow each other within one second.
    """

    trial: bool = False
    version: ApiVersion = ApiVersion.PINNED
    quick: bool = False
    now: int = BORN_AT
    events: list[Event] = field(default_factory=list)
    price: int = 2000
    quantity: int = 1

    def __post_init__(self) -> None:
        self.status = "trialing" if self.trial else "incomplete"
        self.start, self.end = self.now, self.now + MONTH
        self.trial_end = self.end if self.trial else None
        self.cancel_at: int | None = None
        self.canceled_at: int | None = None
        self.ended_at: int | None = None
        self.tell("created", None)

    @property
    def is_over(self) -> bool:
        return self.status in ("canceled", "incomplete_expired")

    # How Stripe tells.

    @property
    def shape(self) -> Shape:
        """The object, in the life's version. https://docs.stripe.com/api/subscriptions/object"""
        price = {"id": f"price_{self.price}", "unit_amount": self.price, "currency": "usd"}
        price["recurring"] = {"interval": "month", "interval_count": 1}
        period = dict(zip(PERIOD, (self.start, self.end), strict=True))
        item = {"id": ITEM, "object": "subscription_item", "price": price, "quantity": self.quantity}
        shape = {
            "id": SUBSCRIPTION,
            "object": "subscription",
            "cancel_at": self.cancel_at,
            "cancel_at_period_end": self.cancel_at is not None,
            "canceled_at": self.canceled_at,
            "created": BORN_AT,
            "customer": CUSTOMER,
            "ended_at": self.ended_at,
            "metadata": {"told": str(len(self.events))},
            "status": self.status,
            "trial_end": self.trial_end,
        }
        if self.version.has_invoice_payments:
            return shape | {"items": {"object": "list", "data": [item | period]}}
        return shape | {"items": {"object": "list", "data": [item]}} | period

    def tell(self, kind: str, before: Shape | None) -> None:
        """Stripe makes an event; ids are in no order."""
        number, shape = len(self.events), copy.deepcopy(self.shape)
        previous = None if before is None else {k: before[k] for k in before if before[k] != shape[k]}
        self.events.append(
            Event(f"evt_{number * 7919 % 1000:03}", f"customer.subscription.{kind}", self.now, shape, previous)
        )

    def change(self, **fields: Any) -> None:
        """Something changes, and is told with what was before."""
        self.now += 0 if self.quick else 1
        before = copy.deepcopy(self.shape)
        vars(self).update(fields)
        self.tell("updated", before)

    def look(self, *, late: int = 0) -> Event:
        """Somebody reads the object, and dates it by a second that had passed."""
        reader = copy.copy(self)
        reader.version = ApiVersion.PINNED
        return Event(f"snapshot_{self.now + late}", "customer.subscription.updated", self.now + late, reader.shape)

    # What may happen, each when it can.

    def pass_time(self) -> None:
        self.now += 5

    def pay(self) -> None:
        if self.status in ("incomplete", "past_due", "unpaid"):
            self.change(status="active")

    def fail(self) -> None:
        if self.status == "active":
            self.change(status="past_due")

    def stop_trying(self) -> None:
        if self.status == "past_due":
            self.change(status="unpaid")

    def renew(self) -> None:
        if self.status in ("active", "trialing", "past_due"):
            if self.cancel_at is not None:
                self.delete()
            else:
                self.change(start=self.end, end=self.end + MONTH, status=self.status.replace("trialing", "active"))

    def warn(self) -> None:
        """A trial is about to end: nothing changes."""
        if self.status == "trialing":
            self.tell("trial_will_end", None)

    def pause(self) -> None:
        if self.status == "trialing":
            self.change(status="paused")
            self.tell("paused", None)

    def resume(self) -> None:
        if self.status == "paused":
            self.change(status="active")
            self.tell("resumed", None)
        elif self.cancel_at is not None and not self.is_over:
            self.change(cancel_at=None, canceled_at=None)

    def schedule_end(self) -> None:
        if not self.is_over and self.cancel_at is None:
            self.change(cancel_at=self.end, canceled_at=self.now)

    def upgrade(self) -> None:
        if self.status in ("active", "trialing"):
            self.change(price=self.price + 500, quantity=self.quantity + 1)

    def downgrade(self) -> None:
        if self.price > 2000 and self.status == "active":
            self.change(price=self.price - 500, quantity=self.quantity - 1)

    def rename(self) -> None:
        """What changes is nothing of ours."""
        if not self.is_over:
            self.change()

    def delete(self) -> None:
        if not self.is_over:
            self.now += 0 if self.quick else 1
            self.status = "incomplete_expired" if self.status == "incomplete" else "canceled"
            self.ended_at, self.canceled_at = self.now, self.canceled_at or self.now
            self.tell("updated" if self.status == "incomplete_expired" else "deleted", None)


ACTIONS = ("pass_time", "pay", "pay", "fail", "stop_trying", "renew", "renew", "warn", "pause", "resume",
           "schedule_end", "upgrade", "downgrade", "rename")  # fmt: skip


@st.composite
def subscription_lives(draw: st.DrawFn) -> SubscriptionLife:
    """Any life of a subscription."""
    life = SubscriptionLife(draw(st.booleans()), draw(st.sampled_from(list(ApiVersion))), draw(st.booleans()))
    for name in draw(st.lists(st.sampled_from(ACTIONS), max_size=14)):
        getattr(life, name)()
    if draw(st.booleans()):
        life.delete()
    return life
