"""Subscriptions, their invoices and what pays these. https://docs.stripe.com/billing/subscriptions/overview."""

import calendar
from datetime import UTC, datetime, timedelta
from typing import Any

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import catalog, payment_intents
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.errors import invalid

RENEWABLE = ("active", "past_due")


def create(account: Account, session: JsonObject, line_items: list[JsonObject], data: JsonObject) -> JsonObject:
    """Start the subscription that a checkout session is for; it is incomplete until its first invoice is paid."""
    now = account.clock.now()
    subscription = account.new(
        "subscription",
        status="incomplete",
        customer=session["customer"],
        currency=session["currency"],
        description=data.get("description"),
        metadata=data.get("metadata"),
        billing_cycle_anchor=now,
        start_date=now,
    )
    subscription["discounts"] = [_discount(account, subscription, given) for given in session["discounts"]]
    items = [_item(account, subscription, line) for line in line_items if line["price"]["recurring"]]
    subscription["items"] |= {"data": items, "total_count": len(items)}
    subscription["items"]["url"] = f"/v1/subscription_items?subscription={subscription['id']}"
    account.emit("customer.subscription.created", subscription)
    return subscription


def _discount(account: Account, subscription: JsonObject, given: JsonObject) -> str:
    discount = account.new(
        "discount",
        customer=subscription["customer"],
        promotion_code=given["promotion_code"],
        source={"coupon": given["coupon"], "type": "coupon"},
        start=subscription["start_date"],
        subscription=subscription["id"],
    )
    return str(discount["id"])


def _item(account: Account, subscription: JsonObject, line: JsonObject) -> JsonObject:
    start = subscription["start_date"]
    return account.build(
        "subscription_item",
        subscription=subscription["id"],
        price=line["price"],
        quantity=line["quantity"],
        current_period_start=start,
        current_period_end=after_interval(start, line["price"]["recurring"]),
    )


def bill(account: Account, subscription: JsonObject, reason: str, lines: list[JsonObject]) -> JsonObject | None:
    """Make and finalize an invoice for the lines, and the payment intent that is to pay it; None when it is of 0.

    :param lines: session line items or subscription items: both have a price and a quantity
    """
    invoice = _draft(account, subscription, reason, lines)
    subscription["latest_invoice"] = invoice["id"]
    account.emit("invoice.created", invoice)
    now = account.clock.now()
    invoice |= {"status": "open", "effective_at": now, "number": f"SANDBOX-{len(account.objects['invoice']):04}"}
    invoice["status_transitions"]["finalized_at"] = now
    account.emit("invoice.finalized", invoice)
    if invoice["total"] == 0:
        _pay(account, invoice)
        return None
    return _intent(account, invoice)


def _draft(account: Account, subscription: JsonObject, reason: str, lines: list[JsonObject]) -> JsonObject:
    subtotal = sum(line["price"]["unit_amount"] * line["quantity"] for line in lines)
    reductions = _reductions(account, subscription, subtotal, first=reason == "subscription_create")
    total = subtotal - sum(reduction["amount"] for reduction in reductions)
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
    return invoice


def _invoice_line(account: Account, invoice: JsonObject, line: JsonObject) -> JsonObject:
    price = line["price"]
    amount = price["unit_amount"] * line["quantity"]
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


def follow(account: Account, intent: JsonObject) -> None:
    """Let the invoice that the intent is to pay, and its subscription, know how a try ended."""
    payment = {"payment_intent": intent["id"], "type": "payment_intent"}
    for paying in account.where("invoice_payment", payment=payment, status="open"):
        invoice = account.objects["invoice"][paying["invoice"]]
        invoice |= {"attempted": True, "attempt_count": invoice["attempt_count"] + 1}
        if intent["status"] == "succeeded":
            _pay(account, invoice, paying)
        else:
            account.emit("invoice.payment_failed", invoice)
            _change_status(account, _subscription_of(account, invoice), {"active": "past_due"})


def _pay(account: Account, invoice: JsonObject, paying: JsonObject | None = None) -> None:
    now = account.clock.now()
    invoice |= {"status": "paid", "amount_paid": invoice["total"], "amount_remaining": 0}
    invoice["status_transitions"]["paid_at"] = now
    account.emit("invoice.paid", invoice)
    account.emit("invoice.payment_succeeded", invoice)
    if paying is not None:
        paying |= {"status": "paid", "amount_paid": invoice["total"]}
        paying["status_transitions"]["paid_at"] = now
        account.emit("invoice_payment.paid", paying)
    _change_status(account, _subscription_of(account, invoice), {"incomplete": "active", "past_due": "active"})


def activate(account: Account, subscription: JsonObject) -> None:
    """The subscription runs while its first payment, by a delayed method, is on its way."""
    _change_status(account, subscription, {"incomplete": "active"})


def give_up(account: Account, subscription: JsonObject) -> None:
    """The first invoice was never paid."""
    invoice = account.objects["invoice"][subscription["latest_invoice"]]
    invoice["status"] = "void"
    account.emit("invoice.voided", invoice)
    _change_status(account, subscription, {"incomplete": "incomplete_expired"})


def renew(account: Account, subscription: JsonObject, *, fail: bool = False) -> None:
    """Begin the next period, and take its money or fail to.

    :raises StripeError: when the subscription doesn't run
    """
    if subscription["status"] not in RENEWABLE:
        raise invalid(f"A subscription with a status of {subscription['status']} can't be renewed.")
    items = subscription["items"]["data"]
    for item in items:
        item["current_period_start"] = item["current_period_end"]
        item["current_period_end"] = after_interval(item["current_period_start"], item["price"]["recurring"])
    account.emit("customer.subscription.updated", subscription)
    intent = bill(account, subscription, "subscription_cycle", items)
    if intent is not None:
        payment_intents.decline(account, intent) if fail else payment_intents.pay(account, intent)


def _subscription_of(account: Account, invoice: JsonObject) -> JsonObject:
    return account.objects["subscription"][invoice["parent"]["subscription_details"]["subscription"]]


def _change_status(account: Account, subscription: JsonObject, changes: dict[str, str]) -> None:
    if subscription["status"] in changes:
        subscription["status"] = changes[subscription["status"]]
        account.emit("customer.subscription.updated", subscription)


def after_interval(start: int, terms: dict[str, Any]) -> int:
    """The time one billing interval later; a month that is too short ends on its last day."""
    count = terms["interval_count"]
    begin = datetime.fromtimestamp(start, UTC)
    if terms["interval"] in {"day", "week"}:
        return int((begin + timedelta(days=count * (7 if terms["interval"] == "week" else 1))).timestamp())
    months = begin.month - 1 + count * (12 if terms["interval"] == "year" else 1)
    year, month = begin.year + months // 12, months % 12 + 1
    day = min(begin.day, calendar.monthrange(year, month)[1])
    return int(begin.replace(year=year, month=month, day=day).timestamp())
