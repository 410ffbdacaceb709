"""Creating a payment, or giving again the answer of the request that had the same Idempotency-Key."""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Row, bindparam, case, false, func, null, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from app.database import Message, send
from app.errors import IdempotencyKeyInUse, IdempotencyKeyReused, ServiceError, StripeRefusal
from app.logs import about
from app.models import Payment, PaymentKind, PaymentStatus, Step, TrackingState
from app.services import Services
from app.services.operations.engine import STRIPE_IDEMPOTENCY_WINDOW, walk
from app.services.operations.leases import HELD_COLUMNS, LEASE, HeldPayment, execute, held_payment, lease_of, let_go
from app.services.upstreams.call_context import CallContext


@dataclass(frozen=True, kw_only=True)
class PaymentRequest:
    """A validated request to create a payment, with the names and the defaults of its schema."""

    kind: PaymentKind
    body: Mapping[str, Any]
    idempotency_key: str | None

    @property
    def app_id(self) -> str:
        return str(self.body["app_id"])

    @property
    def digest(self) -> bytes:
        """Tells one request from another: a hash of the route and of the validated body."""
        return hashlib.sha256(
            self.kind.encode() + b"\n" + orjson.dumps(self.body, option=orjson.OPT_SORT_KEYS)
        ).digest()


_KNOWN_COLUMNS = (
    Payment.id,
    Payment.app_id,
    Payment.kind,
    Payment.request_hash,
    Payment.answer_status,
    Payment.answer,
    Payment.stripe_payment_intent_id,
)

_FIND_BY_KEY = Message(
    select(*_KNOWN_COLUMNS).where(
        Payment.app_id == bindparam("app_id"), Payment.idempotency_key == bindparam("idempotency_key")
    )
)

# One row for an app's Idempotency-Key, whoever comes first; it is born leased, so that nobody else works on it.
_ACCEPT = Message(
    insert(Payment)
    .values(
        id=bindparam("payment_id"),
        step=Step.ACCEPTED,
        lease_token=bindparam("token"),
        lease_until=LEASE,
        run_search_from=case((bindparam("makes_run"), func.now()), else_=null()),
        run_search_until=case((bindparam("makes_run"), LEASE), else_=null()),
        **{
            name: bindparam(name)
            for name in (
                "kind", "app_id", "idempotency_key", "request_hash", "request", "org_id", "run_id", "parent_run_id",
                "brand_id", "campaign_id", "stripe_customer_id", "amount_in_cents", "currency", "description",
                "payment_metadata", "tracking_state",
            )
        },
    )
    .on_conflict_do_nothing(
        index_elements=[Payment.app_id, Payment.idempotency_key],
        index_where=Payment.idempotency_key.is_not(None),
    )
    .returning(Payment.id)
)  # fmt: skip


def _unless_restarted(value: Any, otherwise: Any) -> ColumnElement[Any]:
    return case((Payment.step == Step.FINISHED, value), else_=otherwise)


# A retry takes over a payment that its holder let go of or died with, where it stands. One that was abandoned
# before Stripe took it, and so has no answer to give again, starts anew in the same row under a new attempt.
_TAKE_OVER = Message(
    update(Payment)
    .where(
        Payment.id == bindparam("payment_id"),
        Payment.answer.is_(None),
        or_(
            (Payment.step == Step.ACCEPTED) & (Payment.lease_until <= func.now()),
            (Payment.step == Step.ASKED)
            & (Payment.lease_until <= func.now())
            & (Payment.asked_at > func.now() - STRIPE_IDEMPOTENCY_WINDOW),
            (Payment.step == Step.FINISHED) & (Payment.status == PaymentStatus.REJECTED),
        ),
    )
    .values(
        step=_unless_restarted(Step.ACCEPTED, Payment.step),
        attempt=_unless_restarted(Payment.attempt + 1, Payment.attempt),
        status=PaymentStatus.CREATING,
        run_id=_unless_restarted(case((Payment.org_id.is_(None), Payment.run_id)), Payment.run_id),
        stripe_params=_unless_restarted(null(), Payment.stripe_params),
        asked_at=_unless_restarted(null(), Payment.asked_at),
        created_as=null(),
        asked_anew=_unless_restarted(false(), Payment.asked_anew),
        tracking_state=_unless_restarted(
            case(
                (Payment.run_id.is_(None) & Payment.org_id.is_(None), TrackingState.NONE), else_=TrackingState.PENDING
            ),
            Payment.tracking_state,
        ),
        tracking_error=_unless_restarted(null(), Payment.tracking_error),
        lease_token=bindparam("token"),
        lease_until=LEASE,
        run_search_from=case((Payment.org_id.is_not(None), func.coalesce(Payment.run_search_from, func.now()))),
        run_search_until=case((Payment.org_id.is_not(None), LEASE)),
        updated_at=func.now(),
    )
    .returning(*HELD_COLUMNS)
)


def create_payment(request: PaymentRequest, *, services: Services, context: CallContext) -> dict[str, Any]:
    """Create a payment, or give the answer of the request that had the same Idempotency-Key.

    :raises IdempotencyKeyInUse: while that request is being worked on.
    :raises IdempotencyKeyReused: when that was another request.
    :raises ServiceError: as the contract's table of errors says.
    """
    known = _find_by_key(request, services)
    if known is None:
        services.stripe.require_key(request.app_id, context)
        if accepted := _accept(request, services):
            return _walk_or_let_go(accepted, services, context)
        known = _find_by_key(request, services)
        if known is None:
            raise IdempotencyKeyInUse
    return _answer_again(known, request, services, context)


def _find_by_key(request: PaymentRequest, services: Services) -> Row[Any] | None:
    if request.idempotency_key is None:
        return None
    key = {"app_id": request.app_id, "idempotency_key": request.idempotency_key}
    found = send(services.database, _FIND_BY_KEY, key)
    return found[0] if found else None


def _accept(request: PaymentRequest, services: Services) -> HeldPayment | None:
    body = request.body
    org_id, caller_run_id = body.get("org_id"), body.get("run_id")
    # Without an organisation there is no run of our own: the cost goes onto the caller's.
    run_id = None if org_id else caller_run_id
    held = HeldPayment(
        id=uuid.uuid4(),
        kind=request.kind,
        request=body,
        step=Step.ACCEPTED,
        attempt=1,
        lease_token=uuid.uuid4(),
        org_id=org_id,
        run_id=run_id,
        first_hand=True,
    )
    accepted = execute(
        services,
        _ACCEPT,
        held,
        lease=lease_of(services),
        makes_run=org_id is not None,
        kind=request.kind,
        app_id=request.app_id,
        idempotency_key=request.idempotency_key,
        request_hash=request.digest,
        request=body,
        org_id=org_id,
        run_id=run_id,
        parent_run_id=caller_run_id,
        brand_id=body.get("brand_id"),
        campaign_id=body.get("campaign_id"),
        stripe_customer_id=body.get("customer_id"),
        amount_in_cents=body.get("amount_in_cents"),
        currency=body.get("currency"),
        description=body.get("description"),
        payment_metadata=body.get("metadata", {}),
        tracking_state=TrackingState.PENDING if org_id or run_id else TrackingState.NONE,
    )
    return held if accepted else None


def _answer_again(known: Row[Any], request: PaymentRequest, services: Services, context: CallContext) -> dict[str, Any]:
    # The driver shows bytea as a view of its memory.
    if bytes(known.request_hash) != request.digest:
        raise IdempotencyKeyReused
    about(payment=known.id)
    if known.answer is not None:
        return _replay(known, services, context)
    lease = {"payment_id": known.id, "token": uuid.uuid4(), "lease": lease_of(services)}
    taken_over = send(services.database, _TAKE_OVER, lease)
    if not taken_over:
        raise IdempotencyKeyInUse
    return _walk_or_let_go(held_payment(taken_over[0]._mapping), services, context)


def _walk_or_let_go(payment: HeldPayment, services: Services, context: CallContext) -> dict[str, Any]:
    """Walk; where that ends early, end the lease too, so that a retry need not wait for it."""
    try:
        return walk(payment, services, context)
    except StripeRefusal:
        raise
    except ServiceError:
        let_go(payment, services)
        raise


def _replay(known: Row[Any], services: Services, context: CallContext) -> dict[str, Any]:
    """The kept answer. The client secret isn't kept anywhere but at Stripe, so it is fetched from there."""
    if known.answer_status != 200:
        raise StripeRefusal(known.answer["error"], status=known.answer_status, code=known.answer["code"])
    if known.kind == PaymentKind.CHECKOUT_SESSION:
        return dict(known.answer)
    intent = services.stripe.retrieve_payment_intent(known.app_id, known.stripe_payment_intent_id, context)
    return {**known.answer, "client_secret": intent.client_secret}
