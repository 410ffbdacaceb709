"""Invoices that aren't a subscription's: drawn up, finalized, paid or voided. https://docs.stripe.com/invoicing/overview."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import confirmation, invoice_items, metadata, payment_intents, payment_methods
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.errors import StripeError, invalid, missing_parameter, refused
from app.sandbox.stripe.money import checked_currency
from app.sandbox.stripe.parameters import chosen

# https://docs.stripe.com/invoicing/integration/automatic-advancement-collection
DRAFT_SECONDS = 3600
COPIED = (
    "auto_advance",
    "collection_method",
    "default_payment_method",
    "description",
    "due_date",
    "footer",
    "metadata",
)
UPDATED = ("auto_advance", "default_payment_method", "description", "footer")
PENDING = (
    "This invoice can't be modified while a payment on it is still pending. Wait for the payment to clear, then try "
    "again."
)


def create(account: Account, parameters: JsonObject) -> JsonObject:
    """Make a draft, with the customer's pending items where these are to be included.

    :raises StripeError: when there is no such customer, or the default method isn't the customer's
    """
    if "customer" not in parameters:
        raise missing_parameter("customer")
    customer = account.named("customer", parameters["customer"], param="customer")
    if parameters.get("collection_method") == "send_invoice" and not {"due_date", "days_until_due"} & set(parameters):
        message = "If invoice collection method is 'send_invoice', you must specify 'due_date' or 'days_until_due'."
        raise invalid(message)
    _check_method(account, customer["id"], parameters.get("default_payment_method"), "default_payment_method")
    currency = checked_currency(parameters.get("currency", "usd"))
    invoice = _draft(account, customer["id"], currency, chosen(parameters, *COPIED))
    if parameters.get("pending_invoice_items_behavior") == "include":
        invoice_items.take_pending(account, invoice)
    account.emit("invoice.created", invoice)
    return invoice


def _draft(account: Account, customer_id: str, currency: str, fields: JsonObject) -> JsonObject:
    now = account.clock.now()
    customer = account.objects["customer"][customer_id]
    invoice = account.new(
        "invoice", customer=customer_id, currency=currency, period_start=now, period_end=now, **fields
    )
    invoice |= {"customer_email": customer["email"], "customer_name": customer["name"]}
    if invoice["auto_advance"]:
        invoice |= {"automatically_finalizes_at": now + DRAFT_SECONDS + 1, "next_payment_attempt": now + DRAFT_SECONDS}
    return invoice


def update(account: Account, invoice: JsonObject, parameters: JsonObject) -> None:
    """Change a draft; of any other invoice, only the metadata.

    :raises StripeError: when something else of a finalized one is to change
    """
    for name in (name for name in parameters if name != "metadata" and invoice["status"] != "draft"):
        raise refused("Finalized invoices can't be updated in this way", param=name)
    _check_method(account, invoice["customer"], parameters.get("default_payment_method"), "default_payment_method")
    invoice |= chosen(parameters, *UPDATED)
    if "metadata" in parameters:
        metadata.merge(invoice, parameters["metadata"])
    account.emit("invoice.updated", invoice)


def delete(account: Account, invoice: JsonObject) -> JsonObject:
    """:raises StripeError: when it is no draft"""
    if invoice["status"] != "draft":
        raise refused("You can only delete draft invoices.")
    del account.objects["invoice"][invoice["id"]]
    account.emit("invoice.deleted", invoice)
    return {"id": invoice["id"], "object": "invoice", "deleted": True}


def finalize(account: Account, invoice: JsonObject, parameters: JsonObject) -> None:
    """End the draft, and make the intent that is to pay the invoice; one of nothing is paid at once.

    :raises StripeError: when it is no draft, or comes to what can't be charged
    """
    if invoice["status"] != "draft":
        raise refused("This invoice is already finalized, you can't re-finalize a non-draft invoice.")
    intent = _intent(account, invoice) if invoice["amount_due"] else None
    _open(account, invoice, intent)
    if intent is None:
        _close(account, invoice)


def of_payment(
    account: Account, intent: JsonObject, lines: list[JsonObject], *, fields: JsonObject | None = None
) -> JsonObject:
    """Make an invoice that an intent pays: paid if that has succeeded, and otherwise once it does.

    :param intent: it has a customer
    :param lines: each an amount, a description and a quantity
    """
    invoice = _draft(account, intent["customer"], intent["currency"], fields or {})
    invoice_items.add_lines(account, invoice, lines)
    account.emit("invoice.created", invoice)
    _open(account, invoice, intent)
    if intent["status"] == "succeeded":
        follow(account, intent)
    return invoice


def _intent(account: Account, invoice: JsonObject) -> JsonObject:
    """Make the intent that pays the invoice; it inherits neither metadata nor description."""
    terms = {"amount": invoice["amount_due"], "currency": invoice["currency"], "customer": invoice["customer"]}
    intent = payment_intents.create(account, terms | {"description": "Payment for Invoice"})
    intent["automatic_payment_methods"] = None
    return intent


def _open(account: Account, invoice: JsonObject, intent: JsonObject | None) -> None:
    now = account.clock.now()
    page = f"{account.caller.base_url}/invoice/{invoice['id']}"
    number = f"SANDBOX-{len(account.objects['invoice']):04}"
    invoice |= {"status": "open", "effective_at": now, "number": number}
    invoice |= {"hosted_invoice_url": page, "invoice_pdf": f"{page}/pdf"}
    invoice |= {"automatically_finalizes_at": None, "next_payment_attempt": None}
    invoice["status_transitions"]["finalized_at"] = now
    if intent is not None:
        account.new(
            "invoice_payment",
            amount_requested=invoice["amount_due"],
            currency=invoice["currency"],
            invoice=invoice["id"],
            payment={"payment_intent": intent["id"], "type": "payment_intent"},
        )
    account.emit("invoice.finalized", invoice)


def pay(account: Account, invoice: JsonObject, parameters: JsonObject) -> None:
    """Pay with the method that is given, or the default one; a draft is finalized first.

    :raises StripeError: a 402 when the method is declined, a 400 when there is nothing to pay or to pay with
    """
    if invoice["status"] == "paid":
        raise refused("Invoice is already paid")
    if invoice["status"] not in {"draft", "open"}:
        raise refused("This invoice can no longer be paid.")
    if parameters.get("paid_out_of_band"):
        _pay_elsewhere(account, invoice)
        return
    method_id = _paying_method(account, invoice, parameters)
    if invoice["status"] == "draft":
        finalize(account, invoice, {})
    intent = intent_of(account, invoice)
    if intent is not None and intent["status"] == "processing":
        raise refused(PENDING)
    if intent is not None:
        intent["payment_method"] = method_id
        _collect(account, invoice, intent, absent=parameters.get("off_session", True))


def _pay_elsewhere(account: Account, invoice: JsonObject) -> None:
    """The money has come in another way."""
    if invoice["status"] == "draft":
        finalize(account, invoice, {})
    if invoice["status"] == "open":
        _cancel_payment(account, invoice)
        _close(account, invoice)


def _collect(account: Account, invoice: JsonObject, intent: JsonObject, *, absent: bool) -> None:
    if payment_methods.behaviour(account, intent["payment_method"]).asks:
        payment_intents.require_action(account, intent)
        _fail(account, invoice)
        account.emit("invoice.payment_action_required", invoice)
        message = (
            "Payment for this invoice requires additional user action before it can be completed successfully. Payment "
            f"can be completed using the PaymentIntent associated with invoice `{invoice['id']}`."
        )
        code = "invoice_payment_intent_requires_action"
        raise StripeError(402, "card_error", message, executed=True, code=code)
    try:
        confirmation.attempt(account, intent, absent=absent)
    except StripeError as refusal:
        # Of an invoice's payment, Stripe tells the charge, and the intent only among the invoice's payments.
        refusal.error.pop("payment_intent")
        raise


def _paying_method(account: Account, invoice: JsonObject, parameters: JsonObject) -> str:
    """:raises StripeError: when there is none, or it isn't the customer's"""
    settings = account.objects["customer"][invoice["customer"]].get("invoice_settings", {})
    named = parameters.get("payment_method")
    _check_method(account, invoice["customer"], named, "payment_method")
    method_id = named or invoice["default_payment_method"] or settings.get("default_payment_method")
    if method_id is None:
        message = "There is no `default_payment_method` set on this Customer or Invoice. Please set one, or pass one."
        raise refused(message)
    return str(method_id)


def _check_method(account: Account, customer_id: str, method_id: str | None, param: str) -> None:
    if method_id and (account.get("payment_method", method_id) or {}).get("customer") != customer_id:
        raise payment_methods.unattached(method_id, param=param)


def void(account: Account, invoice: JsonObject, parameters: JsonObject) -> None:
    """Nobody is to pay the invoice any more.

    :raises StripeError: when it isn't open, or a payment is on its way
    """
    if invoice["status"] == "paid":
        raise refused("Invoices with `paid` payments cannot be voided.")
    if invoice["status"] != "open":
        raise refused("You can only pass in open invoices. This invoice isn't open.")
    intent = intent_of(account, invoice)
    if intent is not None and intent["status"] == "processing":
        raise refused(PENDING)
    _cancel_payment(account, invoice)
    invoice["status"] = "void"
    invoice["status_transitions"]["voided_at"] = account.clock.now()
    account.emit("invoice.voided", invoice)


def _cancel_payment(account: Account, invoice: JsonObject) -> None:
    for paying in account.where("invoice_payment", invoice=invoice["id"], status="open"):
        paying["status"] = "canceled"
        paying["status_transitions"]["canceled_at"] = account.clock.now()
        payment_intents.cancel(account, account.objects["payment_intent"][_intent_id(paying)], "void_invoice")


def intent_of(account: Account, invoice: JsonObject) -> JsonObject | None:
    """The intent that is to pay, or has paid, the invoice; None where there is nothing to pay."""
    paying = next(account.where("invoice_payment", invoice=invoice["id"]), None)
    return paying and account.objects["payment_intent"][_intent_id(paying)]


def _intent_id(paying: JsonObject) -> str:
    return str(paying["payment"]["payment_intent"])


def is_paid_by(account: Account, intent: JsonObject) -> bool:
    """Whether the intent pays an invoice that isn't a subscription's."""
    return _open_payment(account, intent) is not None


def _open_payment(account: Account, intent: JsonObject) -> JsonObject | None:
    payment = {"payment_intent": intent["id"], "type": "payment_intent"}
    for paying in account.where("invoice_payment", payment=payment, status="open"):
        if account.objects["invoice"][paying["invoice"]]["parent"] is None:
            return paying
    return None


def follow(account: Account, intent: JsonObject) -> None:
    """Let the invoice that the intent is to pay know how a try ended."""
    paying = _open_payment(account, intent)
    if paying is None:
        return
    invoice = account.objects["invoice"][paying["invoice"]]
    if intent["status"] != "succeeded":
        _fail(account, invoice)
        return
    invoice |= {"attempted": True, "attempt_count": invoice["attempt_count"] + 1}
    paying |= {"status": "paid", "amount_paid": intent["amount_received"]}
    paying["status_transitions"]["paid_at"] = account.clock.now()
    _close(account, invoice)
    account.emit("invoice_payment.paid", paying)


def _fail(account: Account, invoice: JsonObject) -> None:
    invoice |= {"attempted": True, "attempt_count": invoice["attempt_count"] + 1}
    account.emit("invoice.payment_failed", invoice)


def _close(account: Account, invoice: JsonObject) -> None:
    invoice |= {"status": "paid", "amount_paid": invoice["amount_due"], "amount_remaining": 0}
    invoice["status_transitions"]["paid_at"] = account.clock.now()
    account.emit("invoice.paid", invoice)
    account.emit("invoice.payment_succeeded", invoice)
