"""Refunds of charges. https://docs.stripe.com/refunds."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.account import Account, random_id
from app.sandbox.stripe.errors import invalid, missing_parameter, refused
from app.sandbox.stripe.money import checked_amount, display

UNSETTLED = ("pending", "requires_action")
FAILABLE = (*UNSETTLED, "succeeded")
CHARGED_BACK = ("needs_response", "under_review", "lost")


def create(account: Account, parameters: JsonObject) -> JsonObject:
    """Refund the charge, or the payment intent's charge, that the parameters name.

    :raises StripeError: when there is none, or less than the amount is left of it
    """
    return refund(
        account,
        _charge(account, parameters),
        amount=parameters.get("amount"),
        status=account.refund_status,
        reason=parameters.get("reason"),
        metadata=parameters.get("metadata"),
    )


def refund(
    account: Account,
    charge: JsonObject,
    *,
    amount: int | None = None,
    status: str = "succeeded",
    reason: str | None = None,
    metadata: JsonObject | None = None,
) -> JsonObject:
    """Give back the amount, or all that is left; a refund inherits no metadata."""
    given_back = _refundable(account, charge, amount)
    _check_balance(account, given_back)
    made = account.new(
        "refund",
        amount=given_back,
        balance_transaction=random_id("txn_") if status == "succeeded" else None,
        charge=charge["id"],
        currency=charge["currency"],
        metadata=metadata,
        payment_intent=charge["payment_intent"],
        payment_method=charge["payment_method"],
        reason=reason,
        status=status,
    )
    _book(account, charge, given_back)
    account.emit("refund.created", made)
    account.emit("charge.refunded", charge)
    return made


def succeed(account: Account, refund: JsonObject) -> None:
    _require(refund, UNSETTLED, "succeed")
    refund |= {"status": "succeeded", "balance_transaction": random_id("txn_")}
    _announce(account, refund)


def fail(account: Account, refund: JsonObject) -> None:
    """The money comes back, which may happen long after the refund succeeded."""
    _require(refund, () if is_release(refund) else FAILABLE, "fail")
    refund |= {"status": "failed", "failure_reason": "expired_or_canceled_card"}
    _book(account, account.objects["charge"][refund["charge"]], -refund["amount"])
    account.emit("refund.failed", refund)
    _announce(account, refund)


def cancel(account: Account, refund: JsonObject) -> None:
    """End a refund that waits for the customer.

    :raises StripeError: when it doesn't
    """
    _require(refund, ("requires_action",), "be canceled")
    refund["status"] = "canceled"
    _book(account, account.objects["charge"][refund["charge"]], -refund["amount"])
    _announce(account, refund)


def _announce(account: Account, refund: JsonObject) -> None:
    account.emit("refund.updated", refund)
    account.emit("charge.refund.updated", refund)


def _charge(account: Account, parameters: JsonObject) -> JsonObject:
    if "charge" in parameters:
        return account.named("charge", parameters["charge"], param="charge")
    if "payment_intent" not in parameters:
        raise missing_parameter("payment_intent")
    intent = account.named("payment_intent", parameters["payment_intent"], param="payment_intent")
    charge = account.get("charge", intent["latest_charge"] or "")
    if charge is None or not charge["paid"]:
        raise refused(f"This PaymentIntent ({intent['id']}) does not have a successful charge to refund.")
    return charge


def is_release(refund: JsonObject) -> bool:
    """Whether it shows what was authorized and never captured: it moved no money, so that none can come back."""
    return refund["status"] == "succeeded" and refund["balance_transaction"] is None


def is_charged_back(account: Account, charge: JsonObject) -> bool:
    """Whether a dispute, other than a mere inquiry, has or may have the money."""
    return any(dispute["status"] in CHARGED_BACK for dispute in account.where("dispute", charge=charge["id"]))


def _refundable(account: Account, charge: JsonObject, amount: int | None) -> int:
    left: int = charge["amount"] - charge["amount_refunded"]
    if not charge["captured"]:
        raise refused(f"Charge {charge['id']} has not been captured; cancel its PaymentIntent instead.")
    if is_charged_back(account, charge):
        message = f"Charge {charge['id']} has been charged back; cannot issue a refund."
        raise refused(message, code="charge_disputed")
    if left == 0:
        raise refused(f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
    wanted = left if amount is None else checked_amount(amount, charge["currency"], param="amount")
    if wanted > left:
        message = (
            f"Refund amount ({display(wanted, charge['currency'])}) is greater than unrefunded amount on charge "
            f"({display(left, charge['currency'])})"
        )
        raise refused(message, param="amount")
    return wanted


def _check_balance(account: Account, amount: int) -> None:
    if account.available is not None and amount > account.available:
        message = "Insufficient funds in your Stripe balance to refund this amount."
        raise refused(message, code="balance_insufficient")


def _book(account: Account, charge: JsonObject, amount: int) -> None:
    if account.available is not None:
        account.available -= amount
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]


def _require(refund: JsonObject, statuses: tuple[str, ...], verb: str) -> None:
    if refund["status"] not in statuses:
        raise invalid(f"A refund with a status of {refund['status']} cannot {verb}.")
