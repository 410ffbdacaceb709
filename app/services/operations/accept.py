"""Accepting a request: one operation for an app's Idempotency-Key, whoever comes first, and one answer for all."""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import bindparam, case, func, null, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from app.database import Batch
from app.errors import IdempotencyKeyInUse, IdempotencyKeyRequired, IdempotencyKeyReused, ServiceError, StripeRefusal
from app.logs import about
from app.models import Operation, Payment, PaymentStatus, Step, TrackingState
from app.services import Services
from app.services.operations.engine import STRIPE_IDEMPOTENCY_WINDOW, walk
from app.services.operations.kind import Kind, M, Secrets
from app.services.operations.operation import (
    HELD_COLUMNS,
    HOLDS_LEASE,
    LEASE,
    HeldOperation,
    held_by,
    held_operation,
    lease_of,
    release,
)
from app.services.upstreams.call_context import CallContext

# Born leased, so that nobody else works on it.
ACCEPT = (
    insert(Operation)
    .values(
        id=bindparam("operation_id"),
        step=Step.ACCEPTED,
        lease_token=bindparam("token"),
        lease_until=LEASE,
        **{
            name: bindparam(name)
            for name in ("app_id", "kind", "payment_id", "idempotency_key", "request_hash", "request", "run_id",
                         "tracking_state")
        },
    )
    .on_conflict_do_nothing(
        index_elements=[Operation.app_id, Operation.idempotency_key],
        index_where=Operation.idempotency_key.is_not(None),
    )
)  # fmt: skip
ACCEPTED = Operation.id == bindparam("operation_id")

_FIND = Batch(
    select(Operation.id, Operation.kind, Operation.payment_id, Operation.request_hash, Operation.answer_status,
           Operation.answer)
    .where(Operation.app_id == bindparam("app_id"), Operation.idempotency_key == bindparam("idempotency_key"))
)  # fmt: skip

# Since when a run may have been made that no operation knows, and until when: its former holder's last moment.
_has_own_run = Operation.request["org_id"].is_not(None)
RUNS_TO_SEARCH = {
    "run_search_from": case((_has_own_run, func.coalesce(Operation.run_search_from, Operation.created_at))),
    "run_search_until": case((_has_own_run, LEASE)),
}
_by_a_retry = {"lease_token": bindparam("token"), "lease_until": LEASE, **RUNS_TO_SEARCH}

# What Stripe refuses today and may do tomorrow: no such answer keeps a retry from trying.
PASSING_REFUSALS = ("balance_insufficient",)
_refusal_passes = or_(*(Operation.answer["code"].astext == code for code in PASSING_REFUSALS))

# An operation that its holder released, or died with, goes on from where it stands.
_continue = (
    update(Operation)
    .where(
        Operation.id == bindparam("operation_id"),
        Operation.answer.is_(None),
        Operation.lease_until <= func.now(),
        or_(
            Operation.step == Step.ACCEPTED,
            (Operation.step == Step.ASKED) & (Operation.asked_at > func.now() - STRIPE_IDEMPOTENCY_WINDOW),
        ),
    )
    .values(_by_a_retry)
)
# One that was abandoned has no answer to give again, and starts anew in the same row, as one does whose refusal passes.
# Only a run of its own is made anew: a caller's stays the one that is charged.
_restart = (
    update(Operation)
    .where(
        Operation.id == bindparam("operation_id"),
        or_(Operation.answer.is_(None), _refusal_passes),
        Operation.step == Step.FINISHED,
    )
    .values(
        step=Step.ACCEPTED,
        attempt=Operation.attempt + 1,
        run_id=case((_has_own_run, null()), else_=Operation.run_id),
        stripe_params=null(),
        asked_at=null(),
        asked_anew=False,
        answer_status=null(),
        answer=null(),
        tracking_state=case(
            (or_(_has_own_run, Operation.run_id.is_not(None)), TrackingState.PENDING), else_=TrackingState.NONE
        ),
        tracking_error=null(),
        **_by_a_retry,
    )
)
_reopen_payment = (
    update(Payment)
    .where(
        Payment.id == bindparam("operation_id"),
        Operation.id == Payment.id,
        HOLDS_LEASE,
        Payment.status == PaymentStatus.REJECTED,
    )
    .values(status=PaymentStatus.CREATING, run_id=Operation.run_id, updated_at=func.now())
)
_TAKE_OVER = Batch(_continue, _restart, _reopen_payment, select(*HELD_COLUMNS).where(HOLDS_LEASE))


@dataclass(frozen=True, kw_only=True)
class OperationRequest:
    """A validated request, with the names of its schema, and with nothing that the caller didn't send."""

    kind: Kind[Any]
    body: Mapping[str, Any]
    idempotency_key: str | None

    @property
    def app_id(self) -> str:
        """The app that it is for."""
        return str(self.body["app_id"])

    @property
    def digest(self) -> bytes:
        """Tells one request from another: a hash of its kind and of what was sent, without what is the default."""
        defaults = self.kind.defaults
        return _digest(self.kind.name, {k: v for k, v in self.body.items() if k not in defaults or defaults[k] != v})

    def is_of(self, digest: bytes) -> bool:
        """Whether this request has that digest, as it is made now or as it was made before."""
        former = {**self.kind.former_defaults, **self.body}
        return digest in (self.digest, _digest(self.kind.name, former))


def _digest(kind: str, body: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(kind.encode() + b"\n" + orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).digest()


def perform(request: OperationRequest, *, services: Services, context: CallContext) -> dict[str, Any]:
    """Have Stripe do what is requested, or give the answer of the request that had the same Idempotency-Key.

    :raises IdempotencyKeyRequired: when the kind of request needs one and has none.
    :raises IdempotencyKeyInUse: while that request is being worked on.
    :raises IdempotencyKeyReused: when that was another request.
    :raises ServiceError: as the contract's table of errors says.
    """
    if request.idempotency_key is None and request.kind.needs_key(request.body):
        raise IdempotencyKeyRequired
    known = _find(request, services)
    if known is None:
        request.kind.check(request.body)
        services.stripe.require_key(request.app_id, context)
        if accepted := _accept(request, services, context):
            return _walk_or_release(accepted, request.kind, services, context)
        known = _find(request, services)
        if known is None:
            raise IdempotencyKeyInUse
    return _answer_again(known, request, services, context)


def _find(request: OperationRequest, services: Services) -> Any:
    if request.idempotency_key is None:
        return None
    found = services.database.run(_FIND, app_id=request.app_id, idempotency_key=request.idempotency_key)
    return found[0] if found else None


def _accept(request: OperationRequest, services: Services, context: CallContext) -> HeldOperation | None:
    body, operation_id = request.kind.resolve(request.body, services, context), uuid.uuid4()
    columns = request.kind.columns(operation_id, body)
    operation = HeldOperation(
        id=operation_id,
        app_id=request.app_id,
        kind=request.kind.name,
        payment_id=columns["payment_id"],
        request=body,
        step=Step.ACCEPTED,
        attempt=1,
        lease_token=uuid.uuid4(),
        run_id=columns["run_id"],
    )
    accepted = services.database.run(
        request.kind.accept,
        **held_by(operation),
        lease=lease_of(services),
        app_id=operation.app_id,
        kind=operation.kind,
        idempotency_key=request.idempotency_key,
        request_hash=request.digest,
        request=body,
        **columns,
    )
    return operation if accepted else None


def _answer_again(known: Any, request: OperationRequest, services: Services, context: CallContext) -> dict[str, Any]:
    # The driver shows bytea as a view of its memory.
    if known.kind != request.kind.name or not request.is_of(bytes(known.request_hash)):
        raise IdempotencyKeyReused
    about(payment=known.payment_id)
    if known.answer is not None and known.answer.get("code") not in PASSING_REFUSALS:
        return _replay(known, request, services, context)
    taken_over = services.database.run(_TAKE_OVER, operation_id=known.id, token=uuid.uuid4(), lease=lease_of(services))
    if not taken_over:
        raise IdempotencyKeyInUse
    return _walk_or_release(held_operation(taken_over[0]), request.kind, services, context)


def _walk_or_release(
    operation: HeldOperation, kind: Kind[M], services: Services, context: CallContext
) -> dict[str, Any]:
    """Walk; where that ends early, end the lease too, so that a retry need not wait for it."""
    try:
        return walk(operation, kind, services, context)
    except StripeRefusal:
        raise
    except ServiceError:
        release(operation, services)
        raise


def _replay(known: Any, request: OperationRequest, services: Services, context: CallContext) -> dict[str, Any]:
    """The kept answer, with what isn't kept anywhere but at Stripe fetched from there."""
    kind, answer = request.kind, known.answer
    if known.answer_status == 200:
        return _with_secrets(kind.secrets, answer, request, services, context)
    refusal = StripeRefusal(answer["error"], status=known.answer_status, code=answer["code"])
    if "details" in answer:
        refusal.details = _with_secrets(kind.secrets_of_declined, answer["details"], request, services, context)
    raise refusal


def _with_secrets(
    secrets: Secrets[Any] | None,
    kept: Mapping[str, Any],
    request: OperationRequest,
    services: Services,
    context: CallContext,
) -> dict[str, Any]:
    if secrets is None or not secrets.are_in_answer_to(request.body):
        return dict(kept)
    made = services.stripe.retrieve(secrets.resource, request.app_id, kept[secrets.id_in_answer], context)
    return {**kept, **secrets.read(made)}
