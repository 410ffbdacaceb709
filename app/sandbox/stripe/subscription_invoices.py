"""Invoices of subscriptions, and what pays them. https://docs.stripe.com/billing/invoices/subscription."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import catalog, payment_intents
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.calendar import after_interval
from app.sandbox.stripe.errors import invalid

RETRY_SECONDS = 3 * 24 * 3600


def draft(account: Account, subscription: JsonObject, reason: str, lines: list[JsonObject]) -> JsonObject:
    """Make the invoice for the lines.

    :param lines: session line items, subscription items or prorations: all have a price and a quantity
    """
    subtotal = sum(amount_of(line) for line in lines)
    reductions = _reductions(account, subscription, max(subtotal, 0), first=reason == "subscription_create")
    total = max(subtotal - sum(reduction["amount"] for reduction in reductions), 0)
    amounts = dict.fromkeys(("amount_due", "amount_remaining", "total", "total_excluding_tax"), total)
    details = {"metadata": dict(subscription["metadata"]), "subscription": subscription["id"]}
    item = subscription["items"]["data"][0]
    invoice = account.new(
        "invoice",
        **amounts,
        subtotal=subtotal,
        subtotal_excluding_tax=subtotal,
        billing_reason=reason,
        currency=subscription["currency"],
        customer=subscription["customer"],
        discounts=[reduction["discount"] for reduction in reductions],
        total_discount_amounts=reductions,
        customer_email=account.objects["customer"][subscription["customer"]]["email"],
        parent={"quote_details": None, "subscription_details": details, "type": "subscription_details"},
        period_start=item["current_period_start"],
        period_end=item["current_period_end"],
    )
    made = [_invoice_line(account, invoice, line) for line in lines]
    url = f"/v1/invoices/{invoice['id']}/lines"
    invoice["lines"] |= {"data": made, "total_count": len(made), "url": url}
    account.emit("invoice.created", invoice)
    return invoice


def finalize(account: Account, invoice: JsonObject) -> JsonObject | None:
    """Open the invoice, and make the payment intent that is to pay it; None when it is of 0, and so is paid."""
    now = account.clock.now()
    invoice |= {"status": "open", "effective_at": now, "number": f"SANDBOX-{len(account.objects['invoice']):04}"}
    invoice["status_transitions"]["finalized_at"] = now
    account.emit("invoice.finalized", invoice)
    if invoice["total"] == 0:
        pay(account, invoice)
        return None
    return _intent(account, invoice)


def amount_of(line: JsonObject) -> int:
    """What a line costs; of a proration, which may be less than nothing, that stands in it."""
    return int(line["amount"] if "proration" in line else line["price"]["unit_amount"] * line["quantity"])


def _invoice_line(account: Account, invoice: JsonObject, line: JsonObject) -> JsonObject:
    price, amount = line["price"], amount_of(line)
    return account.build(
        "line_item",
        invoice=invoice["id"],
        amount=amount,
        subtotal=amount,
        currency=price["currency"],
        description=f"{line['quantity']} x {account.objects['product'][price['product']]['name']}",
        quantity=line["quantity"],
        period={"start": invoice["period_start"], "end": invoice["period_end"]},
        pricing={
            "price_details": {"price": price["id"], "product": price["product"]},
            "type": "price_details",
            "unit_amount_decimal": price["unit_amount_decimal"],
        },
    )


def _reductions(account: Account, subscription: JsonObject, subtotal: int, *, first: bool) -> list[JsonObject]:
    """What each discount that applies to the invoice takes off."""
    reductions = []
    for discount_id in subscription["discounts"]:
        coupon = account.objects["coupon"][account.objects["discount"][discount_id]["source"]["coupon"]]
        if first or _lasts(account, subscription, coupon):
            reductions.append({"amount": catalog.reduction(coupon, subtotal), "discount": discount_id})
    return reductions


def _lasts(account: Account, subscription: JsonObject, coupon: JsonObject) -> bool:
    """Whether a coupon still applies after the first invoice."""
    if coupon["duration"] != "repeating":
        return bool(coupon["duration"] == "forever")
    terms = {"interval": "month", "interval_count": coupon["duration_in_months"]}
    return account.clock.now() < after_interval(subscription["start_date"], terms)


def _intent(account: Account, invoice: JsonObject) -> JsonObject:
    """Make the intent that pays the invoice; it inherits no metadata of the session or the subscription."""
    terms = {"amount": invoice["total"], "currency": invoice["currency"], "customer": invoice["customer"]}
    intent = payment_intents.create(account, terms | {"description": "Subscription payment"})
    account.new(
        "invoice_payment",
        amount_requested=invoice["total"],
        currency=invoice["currency"],
        invoice=invoice["id"],
        payment={"payment_intent": intent["id"], "type": "payment_intent"},
    )
    return intent


def paid_by(account: Account, intent: JsonObject) -> list[tuple[JsonObject, JsonObject]]:
    """The open invoices that an intent is to pay, each with its invoice payment."""
    payment = {"payment_intent": intent["id"], "type": "payment_intent"}
    open_payments = account.where("invoice_payment", payment=payment, status="open")
    return [(account.objects["invoice"][paying["invoice"]], paying) for paying in open_payments]


def intent_of(account: Account, invoice: JsonObject) -> JsonObject:
    """The intent that is to pay an open invoice.

    :raises StripeError: when it isn't open
    """
    if invoice["status"] != "open":
        raise invalid(f"The invoice is {invoice['status']}.")
    paying = next(account.where("invoice_payment", invoice=invoice["id"], status="open"))
    return account.objects["payment_intent"][paying["payment"]["payment_intent"]]


def pay(account: Account, invoice: JsonObject, paying: JsonObject | None = None) -> None:
    """The invoice is paid: by an intent, by nothing since it is of 0, or outside of Stripe."""
    now = account.clock.now()
    invoice |= {"status": "paid", "amount_paid": invoice["total"], "amount_remaining": 0, "next_payment_attempt": None}
    invoice["status_transitions"]["paid_at"] = now
    if paying is not None:
        paying |= {"status": "paid", "amount_paid": invoice["total"]}
        paying["status_transitions"]["paid_at"] = now
    account.emit("invoice.paid", invoice)
    account.emit("invoice.payment_succeeded", invoice)
    if paying is not None and not account.tells_old_shapes:
        account.emit("invoice_payment.paid", paying)


def fail(account: Account, invoice: JsonObject) -> None:
    """A try to pay it has failed; Stripe tries again in some days."""
    if invoice["billing_reason"] != "subscription_create":
        invoice["next_payment_attempt"] = account.clock.now() + RETRY_SECONDS
    account.emit("invoice.payment_failed", invoice)


def void(account: Account, invoice: JsonObject) -> None:
    """Nobody is to pay it any more."""
    invoice |= {"status": "void", "next_payment_attempt": None}
    invoice["status_transitions"]["voided_at"] = account.clock.now()
    account.emit("invoice.voided", invoice)
