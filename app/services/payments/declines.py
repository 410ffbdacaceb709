"""Declined charges: which code a caller is told, and what he can do about it. Pure, all of it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from app.logs import redact
from app.services.events.stripe_event import answer_event
from app.services.events.stripe_object import id_of, text_of
from app.services.operations.kind import Declined
from app.services.operations.operation import HeldOperation
from app.services.payments.payment_intent import PaymentIntent
from app.services.upstreams.stripe import CardDeclined

AUTHENTICATION_REQUIRED = "authentication_required"
CARD_DECLINED = "card_declined"
# Of an invoice's payment, Stripe says by another code that the bank wants to ask the customer.
ASKS_FOR_CUSTOMER = (AUTHENTICATION_REQUIRED, "invoice_payment_intent_requires_action")
# https://docs.stripe.com/declines/codes
PASSING = (
    "insufficient_funds", "try_again_later", "processing_error", "issuer_not_available", "reenter_transaction"
)  # fmt: skip


class Action(StrEnum):
    """What can be done about a declined charge."""

    CONFIRM_WITH_CUSTOMER = "confirm_with_customer"
    RETRY_LATER = "retry_later"
    NEW_PAYMENT_METHOD = "new_payment_method"


def code_of(code: str, decline_code: str | None) -> str:
    """The code that the caller is told: Stripe's, or that the customer has to be asked, whichever field says so."""
    return AUTHENTICATION_REQUIRED if _any_of(ASKS_FOR_CUSTOMER, code, decline_code) else code


def action_on(code: str, decline_code: str | None) -> Action:
    """What can be done about a charge that was declined with these codes of Stripe's."""
    if _any_of(ASKS_FOR_CUSTOMER, code, decline_code):
        return Action.CONFIRM_WITH_CUSTOMER
    return Action.RETRY_LATER if _any_of(PASSING, code, decline_code) else Action.NEW_PAYMENT_METHOD


def _any_of(codes: tuple[str, ...], *told: str | None) -> bool:
    return any(each in codes for each in told)


def declined(operation: HeldOperation, refusal: CardDeclined, intent: PaymentIntent) -> Declined:
    """What becomes of a charge that was declined: its intent is the payment's, with the one try that failed."""
    code = code_of(refusal.code, refusal.decline_code)
    error = {"charge": refusal.charge_id, "code": code, "message": refusal.sentence}
    shown = {"last_payment_error": error, **{k: v for k, v in intent.stripe_object.items() if v is not None}}
    return Declined(
        refusal,
        code=code,
        fact=answer_event(operation.upstream_key, "payment_intent.payment_failed", shown),
        details={
            "paymentId": str(operation.payment_id),
            "paymentIntentId": intent.id,
            "action": action_on(refusal.code, refusal.decline_code),
        },
        secrets=secret_of_declined(intent),
    )


def secret_of_declined(intent: PaymentIntent) -> dict[str, Any]:
    """What a declined charge's details hold that only Stripe keeps."""
    return {"clientSecret": intent.client_secret}


def refusal_shown_by(intent: PaymentIntent) -> CardDeclined | None:
    """The refusal that an intent shows as its last, where it shows one."""
    error = intent.stripe_object.get("last_payment_error")
    if not isinstance(error, Mapping):
        return None
    return CardDeclined(
        redact(text_of(error.get("message")) or "Your card was declined."),
        code=text_of(error.get("code")) or CARD_DECLINED,
        decline_code=text_of(error.get("decline_code")),
        charge_id=id_of(error.get("charge")),
    )
