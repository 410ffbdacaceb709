"""Stripe's objects, and how each API version shows them in an event."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

CURRENCY = "usd"
Shape = dict[str, Any]


class ApiVersion(StrEnum):
    """API versions of webhook endpoints; each shows what an older one does not, or in another place.

    https://docs.stripe.com/changelog
    """

    CHARGES_OF_INTENT = "2020-08-27"
    LATEST_CHARGE = "2022-11-15"
    INVOICE_PAYMENTS = "2025-03-31.basil"
    PINNED = "2026-10-28"

    @property
    def lists_inside(self) -> bool:
        """Whether an intent shows its charge, and a charge its refunds.

        https://docs.stripe.com/upgrades#2022-11-15
        """
        return self is ApiVersion.CHARGES_OF_INTENT

    @property
    def tells_refunds(self) -> bool:
        """Whether `refund.created`, `.updated` and `.failed` tell of every refund (since 2024-10-28)."""
        return self in (ApiVersion.INVOICE_PAYMENTS, ApiVersion.PINNED)

    @property
    def has_invoice_payments(self) -> bool:
        """Whether an invoice and its intents are tied by invoice payments, and by no field of either.

        https://docs.stripe.com/changelog/basil/2025-03-31/add-support-for-multiple-partial-payments-on-invoices
        """
        return self in (ApiVersion.INVOICE_PAYMENTS, ApiVersion.PINNED)


@dataclass(eq=False)
class Refund:
    """Money that goes back, or (a release) an authorisation that is let go: that one moves no balance."""

    id: str
    charge: "Charge"
    amount: int
    status: str
    created: int
    balance_transaction: str | None
    is_release: bool = False

    @property
    def is_active(self) -> bool:
        return self.status in ("pending", "succeeded")


@dataclass(eq=False)
class Charge:
    """One movement of money; `failed_refunds_count` says that `amount_refunded` keeps what came back."""

    id: str
    intent_id: str
    amount: int
    status: str = "succeeded"
    captured: int = 0
    failure_code: str | None = None
    failed_refunds_count: bool = False
    refunds: list[Refund] = field(default_factory=list)
    created: int = 0

    @property
    def amount_refunded(self) -> int:
        """What Stripe shows: releases are among it."""
        return sum(refund.amount for refund in self.refunds if refund.is_active or self.failed_refunds_count)

    @property
    def refunded(self) -> int:
        """What went back of what was received."""
        return sum(refund.amount for refund in self.refunds if refund.is_active and not refund.is_release)

    @property
    def refundable(self) -> int:
        return min(self.captured - self.refunded, max(self.amount, self.captured) - self.amount_refunded)


@dataclass(eq=False)
class Intent:
    """A payment intent; `error` is what went wrong with its last try."""

    id: str
    amount: int
    status: str = "requires_payment_method"
    received: int = 0
    capturable: int = 0
    error: Shape | None = None
    charge: Charge | None = None


@dataclass(eq=False)
class Dispute:
    """A customer's complaint to the bank."""

    id: str
    charge: Charge
    amount: int
    status: str

    @property
    def is_closed_without_loss(self) -> bool:
        return self.status in ("won", "warning_closed", "prevented", "charge_refunded")

    @property
    def is_open(self) -> bool:
        return self.status != "lost" and not self.is_closed_without_loss

    @property
    def held(self) -> int:
        """What Stripe has withdrawn. Nothing, for an inquiry: https://docs.stripe.com/disputes/how-disputes-work."""
        is_held = self.status == "lost" or (self.is_open and not self.status.startswith("warning_"))
        return self.amount if is_held else 0


def refund_shape(refund: Refund) -> Shape:
    return {
        "id": refund.id,
        "object": "refund",
        "amount": refund.amount,
        "balance_transaction": refund.balance_transaction,
        "charge": refund.charge.id,
        "created": refund.created,
        "currency": CURRENCY,
        "payment_intent": refund.charge.intent_id,
        "reason": None,
        "status": refund.status,
    }


def charge_shape(version: ApiVersion, charge: Charge, *, invoice_id: str | None) -> Shape:
    is_good = charge.status == "succeeded"
    shape = {
        "id": charge.id,
        "object": "charge",
        "amount": charge.amount,
        "amount_captured": charge.captured,
        "amount_refunded": charge.amount_refunded,
        "balance_transaction": f"txn_{charge.id}" if charge.captured else None,
        "captured": charge.captured > 0 or not is_good,
        "created": charge.created,
        "currency": CURRENCY,
        "failure_code": charge.failure_code,
        "failure_message": None if charge.failure_code is None else "No.",
        "paid": is_good,
        "payment_intent": charge.intent_id,
        "receipt_url": f"https://receipt.test/{charge.id}" if is_good else None,
        "refunded": charge.amount_refunded >= charge.amount,
        "status": charge.status,
    }
    if version.lists_inside:
        refunds = [refund_shape(refund) for refund in reversed(charge.refunds)]
        shape["refunds"] = {"object": "list", "data": refunds, "has_more": False}
    return shape if version.has_invoice_payments else shape | {"invoice": invoice_id}


def intent_shape(version: ApiVersion, intent: Intent, *, invoice_id: str | None) -> Shape:
    shape = {
        "id": intent.id,
        "object": "payment_intent",
        "amount": intent.amount,
        "amount_capturable": intent.capturable,
        "amount_received": intent.received,
        "currency": CURRENCY,
        "last_payment_error": intent.error,
        "status": intent.status,
    }
    if version.lists_inside:
        # The list holds the latest charge only: https://docs.stripe.com/upgrades#2022-11-15
        charges = [charge_shape(version, intent.charge, invoice_id=invoice_id)] if intent.charge else []
        shape["charges"] = {"object": "list", "data": charges, "has_more": False}
    else:
        shape["latest_charge"] = intent.charge.id if intent.charge else None
    return shape if version.has_invoice_payments else shape | {"invoice": invoice_id}


def invoice_shape(
    version: ApiVersion, invoice_id: str, *, subscription_id: str, reason: str, intent: Intent | None, **fields: Any
) -> Shape:
    shape = {"id": invoice_id, "object": "invoice", "billing_reason": reason, "currency": CURRENCY, "attempt_count": 1}
    if version.has_invoice_payments:
        details = {"subscription": subscription_id, "metadata": {}}
        links: Shape = {"parent": {"type": "subscription_details", "subscription_details": details}}
    else:
        charge = intent.charge.id if intent and intent.charge else None
        links = {"subscription": subscription_id, "payment_intent": intent.id if intent else None, "charge": charge}
    return shape | links | fields


def invoice_payment_shape(payment_id: str, invoice_id: str, intent: Intent) -> Shape:
    return {
        "id": payment_id,
        "object": "invoice_payment",
        "amount_paid": intent.received,
        "amount_requested": intent.amount,
        "currency": CURRENCY,
        "invoice": invoice_id,
        "payment": {"type": "payment_intent", "payment_intent": intent.id},
        "status": "paid",
    }


def dispute_shape(dispute: Dispute) -> Shape:
    return {
        "id": dispute.id,
        "object": "dispute",
        "amount": dispute.amount,
        "charge": dispute.charge.id,
        "currency": CURRENCY,
        "is_charge_refundable": dispute.status.startswith("warning_"),
        "payment_intent": dispute.charge.intent_id,
        "reason": "fraudulent",
        "status": dispute.status,
    }
