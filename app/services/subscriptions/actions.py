"""The kinds of operation that do something with a subscription: cancel, resume and change.

Each belongs to the payment that the subscription began with. Whether it can be done, and what is changed by it, is
Stripe's to say: what a subscription is, is asked before.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select
from stripe.params import SubscriptionUpdateParams

from app.database import Batch
from app.errors import InvalidRequest, NotFound
from app.models import Operation, OperationKind, Payment, Subscription, TrackingState
from app.services import Services
from app.services.events.stripe_event import ANSWER_PREFIX, Event, storable
from app.services.events.stripe_object import id_of, required
from app.services.events.subscription import DELETED, ENDED, SubscriptionItem, SubscriptionState, read_subscription
from app.services.operations.accept import ACCEPT, OperationRequest, perform
from app.services.operations.kind import Ask, Find, Kind, NewContext
from app.services.operations.operation import HeldOperation
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import Resource

CREATE_PRORATIONS, ALWAYS_INVOICE = "create_prorations", "always_invoice"

_WHOSE = ("payment_id", "org_id", "brand_id", "campaign_id")
_FIND = Batch(
    select(Subscription.payment_id, Subscription.org_id, Payment.brand_id, Payment.campaign_id)
    .join(Payment, Payment.id == Subscription.payment_id)
    .where(Subscription.app_id == bindparam("app_id"), Subscription.id == bindparam("subscription_id"))
)
_ACCEPT = Batch(ACCEPT.returning(Operation.id))


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A subscription as Stripe shows it, and since when, in seconds since 1970."""

    id: str
    state: SubscriptionState
    stripe_object: Mapping[str, Any] = field(repr=False)
    as_of: int = 0

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "Shown":
        """:raises ValueError: when it is none, or can't be stored."""
        state = required(read_subscription(answer))
        return cls(id=required(id_of(answer["id"])), state=state, stripe_object=storable(answer))

    @property
    def has_ended(self) -> bool:
        return self.state.status in ENDED

    @property
    def is_to_end(self) -> bool:
        return self.state.cancel_at is not None or self.state.cancel_at_period_end


SUBSCRIPTIONS = Resource("/v1/subscriptions", "subscription", Shown.read)


def act_on_subscription(
    kind: Kind[Any],
    subscription_id: str,
    body: Mapping[str, Any],
    *,
    idempotency_key: str | None,
    services: Services,
    context: CallContext,
) -> dict[str, Any]:
    """Have Stripe do something with a subscription, or give the answer of the request with the same Idempotency-Key.

    :raises NotFound: when the app has no such subscription.
    :raises ServiceError: as `perform`, and as the contract says.
    """
    request = OperationRequest(
        kind=kind, body={**body, "subscription_id": subscription_id}, idempotency_key=idempotency_key
    )
    with services.upstream_limit.hold(request.app_id):
        return perform(request, services=services, context=context)


# What a request is about.


def _find_owner(body: Mapping[str, Any], services: Services) -> dict[str, Any]:
    """Whose a subscription is, as its answers show it.

    :raises NotFound: when the app has no such subscription.
    """
    names = {"app_id": body["app_id"], "subscription_id": body["subscription_id"]}
    found = "\x00" not in body["subscription_id"] and services.database.run(_FIND, **names)
    if not found:
        raise NotFound("Subscription not found")
    return {**{name: getattr(found[0], name) for name in _WHOSE}, "payment_id": str(found[0].payment_id)}


def _resolve_cancel(body: Mapping[str, Any], services: Services, context: CallContext) -> Mapping[str, Any]:
    return {**body, "owner": _find_owner(body, services)}


def _resolve_resume(body: Mapping[str, Any], services: Services, context: CallContext) -> Mapping[str, Any]:
    """Find what keeps it from going on: it is paused, or it is to end at a time or with its period."""
    owner = _find_owner(body, services)
    state = services.stripe.retrieve(SUBSCRIPTIONS, body["app_id"], body["subscription_id"], context).state
    is_timed = state.cancel_at is not None and not state.cancel_at_period_end
    return {**body, "owner": owner, "is_paused": state.status == "paused", "is_timed": is_timed}


def _resolve_change(body: Mapping[str, Any], services: Services, context: CallContext) -> Mapping[str, Any]:
    owner = _find_owner(body, services)
    items = services.stripe.retrieve(SUBSCRIPTIONS, body["app_id"], body["subscription_id"], context).state.items
    return {**body, "owner": owner, "item_id": _item_to_change(body.get("item_id"), items)}


def _item_to_change(named: str | None, items: tuple[SubscriptionItem, ...]) -> str | None:
    """The item that the caller names, or the only one.

    :raises InvalidRequest: when it is none of the subscription's, or it has several.
    """
    ids = [item.item_id for item in items]
    if named is None and len(ids) != 1:
        raise InvalidRequest({"itemId": [f"Is required, as there are several: {', '.join(filter(None, ids))}."]})
    if named is not None and named not in ids:
        raise InvalidRequest({"itemId": ["Is none of this subscription's."]})
    return named or ids[0]


# What Stripe is asked, and how it is known to be done.


def _cancel_params(operation: HeldOperation) -> SubscriptionUpdateParams:
    """https://docs.stripe.com/api/subscriptions/update and /cancel, which takes none."""
    return {"cancel_at_period_end": True} if _ends_later(operation) else {}


def _resume_params(operation: HeldOperation) -> SubscriptionUpdateParams:
    """https://docs.stripe.com/api/subscriptions/update and /resume, which takes none."""
    if operation.request["is_paused"]:
        return {}
    return {"cancel_at": ""} if operation.request["is_timed"] else {"cancel_at_period_end": False}


def _change_params(operation: HeldOperation) -> SubscriptionUpdateParams:
    """https://docs.stripe.com/api/subscriptions/update; what is declined at once leaves all as it was."""
    request, proration = operation.request, operation.request.get("proration", CREATE_PRORATIONS)
    params: SubscriptionUpdateParams = {
        "items": [{"id": request["item_id"]}],
        "proration_behavior": proration,
    }
    if "price_id" in request:
        params["items"][0]["price"] = request["price_id"]
    if "quantity" in request:
        params["items"][0]["quantity"] = request["quantity"]
    if proration == ALWAYS_INVOICE:
        params["payment_behavior"] = "error_if_incomplete"
    return params


def _ends_later(operation: HeldOperation) -> bool:
    return bool(operation.request.get("at_period_end", True))


def _asks(way: Callable[[HeldOperation], Mapping[str, Any]]) -> Ask[Shown]:
    """Have Stripe change a subscription.

    :param way: by which method, and with which last part of the path
    """

    def ask(operation: HeldOperation, params: Mapping[str, Any], services: Services, context: CallContext) -> Shown:
        shown, answered_at = services.stripe.change(
            SUBSCRIPTIONS,
            operation.app_id,
            operation.request["subscription_id"],
            params,
            idempotency_key=operation.upstream_key,
            context=context,
            **way(operation),
        )
        return replace(shown, as_of=answered_at)

    return ask


def _finds(is_done: Callable[[HeldOperation, Shown], bool]) -> Find[Shown]:
    """Look at the subscription, and tell whether it is as it was wanted."""

    def find(operation: HeldOperation, services: Services, new_context: NewContext) -> Shown | None:
        name = operation.request["subscription_id"]
        shown, as_of = services.stripe.retrieve_as_of(SUBSCRIPTIONS, operation.app_id, name, new_context())
        return replace(shown, as_of=as_of) if is_done(operation, shown) else None

    return find


def _is_canceled(operation: HeldOperation, shown: Shown) -> bool:
    return shown.has_ended or (_ends_later(operation) and shown.is_to_end)


def _is_resumed(operation: HeldOperation, shown: Shown) -> bool:
    return not (shown.has_ended or shown.is_to_end or shown.state.status == "paused")


def _is_changed(operation: HeldOperation, shown: Shown) -> bool:
    request = operation.request
    wanted = {name: request[name] for name in ("item_id", "price_id", "quantity") if name in request}
    return any(wanted.items() <= asdict(item).items() for item in shown.state.items)


# What becomes of the answer.


def _tell(operation: HeldOperation, shown: Shown) -> Event:
    told = DELETED if shown.has_ended else "customer.subscription.updated"
    return Event(f"{ANSWER_PREFIX}{operation.upstream_key}", told, shown.as_of, shown.stripe_object)


def _answer(operation: HeldOperation, shown: Shown) -> dict[str, Any]:
    """Kept as JSON, in which times are texts."""
    state = {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(shown.state).items()
    }
    owner = operation.request["owner"]
    return {"success": True, "subscription": {"id": shown.id, "app_id": operation.app_id, **owner, **state}}


def _columns(operation_id: uuid.UUID, body: Mapping[str, Any]) -> dict[str, Any]:
    payment_id = uuid.UUID(body["owner"]["payment_id"])
    return {"payment_id": payment_id, "run_id": None, "tracking_state": TrackingState.NONE}


CANCEL_SUBSCRIPTION: Kind[Shown] = Kind(
    name=OperationKind.CANCEL_SUBSCRIPTION,
    defaults={"at_period_end": True},
    resolve=_resolve_cancel,
    params=_cancel_params,
    ask=_asks(lambda operation: {} if _ends_later(operation) else {"method": "delete"}),
    find=_finds(_is_canceled),
    is_told_by_state=True,
    fact=_tell,
    answer=_answer,
    accept=_ACCEPT,
    columns=_columns,
)
RESUME_SUBSCRIPTION: Kind[Shown] = Kind(
    name=OperationKind.RESUME_SUBSCRIPTION,
    resolve=_resolve_resume,
    params=_resume_params,
    ask=_asks(lambda operation: {"action": "resume"} if operation.request["is_paused"] else {}),
    find=_finds(_is_resumed),
    is_told_by_state=True,
    fact=_tell,
    answer=_answer,
    accept=_ACCEPT,
    columns=_columns,
)
CHANGE_SUBSCRIPTION: Kind[Shown] = Kind(
    name=OperationKind.CHANGE_SUBSCRIPTION,
    defaults={"proration": CREATE_PRORATIONS},
    resolve=_resolve_change,
    params=_change_params,
    ask=_asks(lambda operation: {}),
    find=_finds(_is_changed),
    is_told_by_state=True,
    fact=_tell,
    answer=_answer,
    accept=_ACCEPT,
    columns=_columns,
)
