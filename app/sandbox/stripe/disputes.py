"""Disputes of charges. https://docs.stripe.com/disputes."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.account import Account, random_id
from app.sandbox.stripe.errors import invalid
from app.sandbox.stripe.money import checked_amount

OPEN_INQUIRY = ("warning_needs_response", "warning_under_review")
OPEN = ("needs_response", "under_review")
RESPONSE_SECONDS = 7 * 24 * 3600


def open_dispute(
    account: Account, charge: JsonObject, *, amount: int | None = None, warning: bool = False
) -> JsonObject:
    """The cardholder disputes the charge; a warning is an inquiry, which takes no money yet.

    A dispute inherits no metadata.

    :raises StripeError: when there is nothing to dispute
    """
    if not charge["captured"] or charge["disputed"]:
        raise invalid(f"Charge {charge['id']} can't be disputed.")
    disputed = (
        charge["amount_captured"] if amount is None else checked_amount(amount, charge["currency"], param="amount")
    )
    if disputed > charge["amount_captured"]:
        raise invalid("The disputed amount is greater than the captured amount.", param="amount")
    dispute = account.new(
        "dispute",
        amount=disputed,
        charge=charge["id"],
        currency=charge["currency"],
        payment_intent=charge["payment_intent"],
        is_charge_refundable=warning,
        reason="fraudulent",
        status="warning_needs_response" if warning else "needs_response",
    )
    dispute["payment_method_details"]["card"]["case_type"] = "inquiry" if warning else "chargeback"
    dispute["evidence_details"]["due_by"] = account.clock.now() + RESPONSE_SECONDS
    charge["disputed"] = True
    account.emit("charge.dispute.created", dispute)
    if not warning:
        _move_funds(account, dispute, -disputed, "funds_withdrawn")
    return dispute


def win(account: Account, dispute: JsonObject) -> None:
    """Evidence is reviewed and accepted: the money comes back."""
    _require(dispute, OPEN)
    dispute["status"] = "under_review"
    dispute["evidence_details"] |= {"has_evidence": True, "submission_count": 1}
    account.emit("charge.dispute.updated", dispute)
    _close(account, dispute, "won")
    _move_funds(account, dispute, dispute["amount"], "funds_reinstated")


def lose(account: Account, dispute: JsonObject) -> None:
    _require(dispute, OPEN)
    _close(account, dispute, "lost")


def close_warning(account: Account, dispute: JsonObject) -> None:
    """The inquiry ends without a chargeback."""
    _require(dispute, OPEN_INQUIRY)
    _close(account, dispute, "warning_closed")
    account.objects["charge"][dispute["charge"]]["disputed"] = False


def prevent(account: Account, dispute: JsonObject) -> None:
    """The dispute is settled before it becomes one: whatever was withdrawn comes back."""
    _require(dispute, (*OPEN, *OPEN_INQUIRY))
    _close(account, dispute, "prevented")
    if dispute["balance_transactions"]:
        _move_funds(account, dispute, dispute["amount"], "funds_reinstated")


def _close(account: Account, dispute: JsonObject, status: str) -> None:
    dispute["status"] = status
    account.emit("charge.dispute.closed", dispute)


def _move_funds(account: Account, dispute: JsonObject, amount: int, what: str) -> None:
    dispute["balance_transactions"].append(
        {
            "id": random_id("txn_"),
            "object": "balance_transaction",
            "amount": amount,
            "created": account.clock.now(),
            "currency": dispute["currency"],
            "source": dispute["id"],
            "type": "adjustment",
        }
    )
    account.emit(f"charge.dispute.{what}", dispute)


def _require(dispute: JsonObject, statuses: tuple[str, ...]) -> None:
    if dispute["status"] not in statuses:
        raise invalid(f"A dispute with a status of {dispute['status']} can't do that.")
