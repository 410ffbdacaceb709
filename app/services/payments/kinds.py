"""The two kinds of operation that create a payment: a checkout session, and a payment intent."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import insert

from app.database import Batch
from app.errors import InvalidRequest
from app.models import CaptureMethod, Operation, OperationKind, Payment, TrackingState
from app.services import Services
from app.services.events.stripe_event import answer_event
from app.services.events.stripe_object import id_of, required, text_of
from app.services.operations.accept import ACCEPT, ACCEPTED
from app.services.operations.kind import Kind, NewContext, Secrets, create_at, find_made
from app.services.operations.operation import HeldOperation
from app.services.payments.charges import create_intent, find_intent, resolve_charge, resolve_customer
from app.services.payments.declines import secret_of_declined
from app.services.payments.invoiced_charges import charge_with_invoice, find_charge_with_invoice
from app.services.payments.payment_intent import PAYMENT_INTENTS, PaymentIntent
from app.services.payments.run_tracking import create_run, end_run_made_for_nothing, report_to_run
from app.services.payments.stripe_params import (
    DEFAULT_CURRENCY,
    DEFAULT_MODE,
    EMBEDDED,
    checkout_session_params,
    invoiced_charge_params,
    payment_intent_params,
)
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import Resource

MAX_URL_LENGTH = 10_000
# For how long a page is open. https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-expires_at
SHORTEST_LIFETIME_SECONDS, LONGEST_LIFETIME_SECONDS = 30 * 60, 24 * 3600


@dataclass(frozen=True, kw_only=True)
class CheckoutSession:
    """What we use of Stripe's checkout session, and the whole of it."""

    id: str
    url: str | None
    client_secret: str | None
    stripe_object: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> "CheckoutSession":
        """:raises ValueError: when it is none."""
        url = answer.get("url")
        if url is not None and len(required(text_of(url))) > MAX_URL_LENGTH:
            raise ValueError("not a usable URL")
        return cls(
            id=required(id_of(answer["id"])),
            url=url,
            client_secret=text_of(answer.get("client_secret")),
            stripe_object=answer,
        )


CHECKOUT_SESSIONS = Resource("/v1/checkout/sessions", "checkout.session", CheckoutSession.read)

# What the caller asked for stands on the payment from the beginning: the columns, and the fields that they hold.
_REQUEST_COLUMNS = {
    "org_id": "org_id",
    "parent_run_id": "run_id",
    "brand_id": "brand_id",
    "campaign_id": "campaign_id",
    "stripe_customer_id": "customer_id",
    "description": "description",
}
_PAYMENT_COLUMNS = (
    "app_id", "kind", "run_id", "amount_in_cents", "currency", "payment_metadata", "capture_method", *_REQUEST_COLUMNS
)  # fmt: skip
# Inserted for nobody but whoever accepts the operation.
_add_payment = (
    insert(Payment)
    .from_select(
        ["id", *(getattr(Payment, name) for name in _PAYMENT_COLUMNS)],
        select(Operation.id, *(bindparam(name, type_=getattr(Payment, name).type) for name in _PAYMENT_COLUMNS)).where(
            ACCEPTED
        ),
    )
    .returning(Payment.id)
)
_ACCEPT_WITH_PAYMENT = Batch(ACCEPT, _add_payment)


def _payment_columns(operation_id: uuid.UUID, body: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a payment, and where its operation is tracked."""
    # Without an organisation there is no run of our own: the cost goes onto the caller's.
    run_id = None if body.get("org_id") else body.get("run_id")
    is_tracked = body.get("org_id") or run_id
    return {
        **{column: body.get(name) for column, name in _REQUEST_COLUMNS.items()},
        "payment_id": operation_id,
        "run_id": run_id,
        "amount_in_cents": None,
        "currency": None,
        "payment_metadata": body.get("metadata", {}),
        "capture_method": body.get("capture_method", CaptureMethod.AUTOMATIC),
        "tracking_state": TrackingState.PENDING if is_tracked else TrackingState.NONE,
    }


def _intent_columns(operation_id: uuid.UUID, body: Mapping[str, Any]) -> dict[str, Any]:
    amount = {"amount_in_cents": body["amount_in_cents"], "currency": body.get("currency", DEFAULT_CURRENCY)}
    return {**_payment_columns(operation_id, body), **amount}


def _require_lifetime(body: Mapping[str, Any]) -> None:
    """:raises InvalidRequest: when the page would be open for less than Stripe allows, or for longer."""
    if "expires_at" not in body:
        return
    if not SHORTEST_LIFETIME_SECONDS <= body["expires_at"] - time.time() <= LONGEST_LIFETIME_SECONDS:
        raise InvalidRequest({"expiresAt": ["Must be 30 minutes to 24 hours ahead."]})


def _answer_checkout(operation: HeldOperation, session: CheckoutSession) -> dict[str, Any]:
    return {"success": True, "payment_id": str(operation.payment_id), "session_id": session.id, "url": session.url}


def _params_of_intent(operation: HeldOperation) -> Mapping[str, Any]:
    is_invoiced = operation.request.get("invoice")
    return invoiced_charge_params(operation) if is_invoiced else payment_intent_params(operation)


def _ask_for_intent(
    operation: HeldOperation, params: Mapping[str, Any], services: Services, context: CallContext
) -> PaymentIntent:
    ask = charge_with_invoice if operation.request.get("invoice") else create_intent
    return ask(operation, params, services, context)


def _find_intent(operation: HeldOperation, services: Services, new_context: NewContext) -> PaymentIntent | None:
    find = find_charge_with_invoice if operation.request.get("invoice") else find_intent
    return find(operation, services, new_context)


def _secret_of_page(session: CheckoutSession) -> dict[str, Any]:
    return {} if session.client_secret is None else {"client_secret": session.client_secret}


def _answer_intent(operation: HeldOperation, intent: PaymentIntent) -> dict[str, Any]:
    return {
        "success": True,
        "payment_id": str(operation.payment_id),
        "payment_intent_id": intent.id,
        "status": intent.status,
        **intent.invoice,
    }


CREATE_CHECKOUT_SESSION = Kind(
    name=OperationKind.CHECKOUT_SESSION,
    defaults={
        "mode": DEFAULT_MODE,
        "capture_method": CaptureMethod.AUTOMATIC,
        "ui_mode": "hosted",
        "redirect_on_completion": "always",
        **dict.fromkeys(("allow_promotion_codes", "automatic_tax", "invoice_creation", "save_for_later"), False),
    },
    former_defaults={"mode": "payment"},
    check=_require_lifetime,
    resolve=resolve_customer,
    accept=_ACCEPT_WITH_PAYMENT,
    columns=_payment_columns,
    prepare=create_run,
    unprepare=end_run_made_for_nothing,
    params=checkout_session_params,
    ask=create_at(CHECKOUT_SESSIONS),
    find=find_made(CHECKOUT_SESSIONS, mark="paymentId"),
    fact=lambda operation, session: answer_event(
        operation.upstream_key, "checkout.session.created", session.stripe_object
    ),
    answer=_answer_checkout,
    secrets=Secrets(CHECKOUT_SESSIONS, "session_id", _secret_of_page, lambda body: body.get("ui_mode") == EMBEDDED),
    complete=report_to_run,
)
CREATE_PAYMENT_INTENT = Kind(
    name=OperationKind.PAYMENT_INTENT,
    defaults={
        "currency": DEFAULT_CURRENCY,
        "capture_method": CaptureMethod.AUTOMATIC,
        **dict.fromkeys(("off_session", "invoice", "save_for_later"), False),
    },
    former_defaults={"currency": "usd"},
    # Two equal charges are both legitimate.
    needs_key=lambda body: bool(body.get("off_session")),
    resolve=resolve_charge,
    accept=_ACCEPT_WITH_PAYMENT,
    columns=_intent_columns,
    prepare=create_run,
    unprepare=end_run_made_for_nothing,
    params=_params_of_intent,
    ask=_ask_for_intent,
    find=_find_intent,
    fact=lambda operation, intent: answer_event(operation.upstream_key, "payment_intent.created", intent.stripe_object),
    answer=_answer_intent,
    secrets=Secrets(PAYMENT_INTENTS, "payment_intent_id", lambda intent: {"client_secret": intent.client_secret}),
    secrets_of_declined=Secrets(PAYMENT_INTENTS, "paymentIntentId", secret_of_declined),
    complete=report_to_run,
)
