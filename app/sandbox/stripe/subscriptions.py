"""Subscriptions, from their checkout to their end. https://docs.stripe.com/billing/subscriptions/overview."""

from typing import Any

from app.sandbox.json_object import JsonObject, snapshot
from app.sandbox.stripe import charges, payment_intents, subscription_invoices
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.calendar import after_interval
from app.sandbox.stripe.errors import invalid, missing_parameter, no_such
from app.sandbox.stripe.subscription_invoices import amount_of

RENEWABLE = ("trialing", "active", "past_due")
ENDED = ("canceled", "incomplete_expired")
# What a subscription becomes when an invoice of it is paid, and when a try to pay one fails.
WHEN_PAID = {"incomplete": "active", "trialing": "active", "past_due": "active", "unpaid": "active"}
WHEN_FAILED = {"active": "past_due", "trialing": "past_due"}


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
    """Make and finalize an invoice for the lines; return the intent that is to pay it, None when it is of 0."""
    invoice = subscription_invoices.draft(account, subscription, reason, lines)
    subscription["latest_invoice"] = invoice["id"]
    intent = subscription_invoices.finalize(account, invoice)
    # Nothing is due as long as a trial lasts.
    if intent is None and not (subscription["status"] == "trialing" and reason == "subscription_create"):
        _change_status(account, subscription, WHEN_PAID)
    return intent


def follow(account: Account, intent: JsonObject) -> None:
    """Let the invoice that the intent is to pay, and its subscription, know how a try ended."""
    for invoice, paying in subscription_invoices.paid_by(account, intent):
        if invoice["parent"] is None:
            continue
        invoice |= {"attempted": True, "attempt_count": invoice["attempt_count"] + 1}
        if intent["status"] == "succeeded":
            subscription_invoices.pay(account, invoice, paying)
            _change_status(account, _subscription_of(account, invoice), WHEN_PAID)
        else:
            subscription_invoices.fail(account, invoice)
            _change_status(account, _subscription_of(account, invoice), WHEN_FAILED)


def activate(account: Account, subscription: JsonObject) -> None:
    """The subscription runs while its first payment, by a delayed method, is on its way."""
    _change_status(account, subscription, {"incomplete": "active"})


def give_up(account: Account, subscription: JsonObject) -> None:
    """The first invoice was never paid."""
    subscription_invoices.void(account, account.objects["invoice"][subscription["latest_invoice"]])
    _change_status(account, subscription, {"incomplete": "incomplete_expired"})


# What time and the customer's bank do.


def renew(account: Account, subscription: JsonObject, *, fail: bool = False, ask: bool = False) -> None:
    """Begin the next period, and take its money or fail to; one that is to end then ends instead.

    :param fail: the card declines
    :param ask: the bank asks the customer
    :raises StripeError: when the subscription doesn't run
    """
    if subscription["status"] not in RENEWABLE:
        raise invalid(f"A subscription with a status of {subscription['status']} can't be renewed.")
    if subscription["cancel_at_period_end"]:
        _end(account, subscription, "cancellation_requested")
        return
    billing, items = _billing(account, subscription), snapshot(subscription["items"])
    for item in items["data"]:
        item["current_period_start"] = item["current_period_end"]
        terms, anchor = item["price"]["recurring"], subscription["billing_cycle_anchor"]
        item["current_period_end"] = after_interval(item["current_period_start"], terms, anchor=anchor)
    _update(account, subscription, items=items)
    lines, billing["prorations"] = [*items["data"], *billing["prorations"]], []
    intent = bill(account, subscription, "subscription_cycle", lines)
    if intent is not None and ask:
        _ask_customer(account, subscription, intent)
    elif intent is not None:
        _try(account, subscription, intent, fail=fail)


def _ask_customer(account: Account, subscription: JsonObject, intent: JsonObject) -> None:
    """The bank wants the customer, who isn't there. https://docs.stripe.com/billing/subscriptions/webhooks."""
    payment_intents.require_action(account, intent)
    account.emit("invoice.payment_action_required", account.objects["invoice"][subscription["latest_invoice"]])
    _change_status(account, subscription, WHEN_FAILED)


def retry(account: Account, subscription: JsonObject, *, fail: bool = False) -> None:
    """Try to take the money of the latest invoice once more.

    :raises StripeError: when nothing is left to pay of it
    """
    invoice = account.objects["invoice"][subscription["latest_invoice"]]
    _try(account, subscription, subscription_invoices.intent_of(account, invoice), fail=fail)


def _try(account: Account, subscription: JsonObject, intent: JsonObject, *, fail: bool) -> None:
    if fail or _billing(account, subscription)["card_declines"]:
        payment_intents.decline(account, intent)
    else:
        payment_intents.pay(account, intent)


def is_owed(account: Account, subscription: JsonObject) -> bool:
    """Whether the latest invoice waits for money, and isn't the first one, which is paid on its own page."""
    invoice = account.get("invoice", subscription["latest_invoice"] or "")
    return bool(invoice and invoice["status"] == "open" and invoice["billing_reason"] != "subscription_create")


def settle_outside(account: Account, subscription: JsonObject) -> None:
    """The latest invoice is paid outside of Stripe, so that no intent pays it."""
    subscription_invoices.pay(account, account.objects["invoice"][subscription["latest_invoice"]])
    _change_status(account, subscription, WHEN_PAID)


def void_invoice(account: Account, subscription: JsonObject) -> None:
    """The latest invoice is called off, and its intent with it."""
    invoice = account.objects["invoice"][subscription["latest_invoice"]]
    intent = subscription_invoices.intent_of(account, invoice)
    subscription_invoices.void(account, invoice)
    payment_intents.cancel(account, intent, "void_invoice")


def stop_trying(account: Account, subscription: JsonObject) -> None:
    """All retries have failed, and the subscription is left unpaid."""
    _change_status(account, subscription, {"past_due": "unpaid"})


def swap_card(account: Account, subscription: JsonObject) -> None:
    """The card that paid declines from now on, or the other way round."""
    billing = _billing(account, subscription)
    billing["card_declines"] = not billing["card_declines"]


def pause(account: Account, subscription: JsonObject) -> None:
    """A trial has ended without a way to pay. https://docs.stripe.com/billing/subscriptions/trials."""
    _update(account, subscription, status="paused")
    account.emit("customer.subscription.paused", subscription)


def end(account: Account, subscription: JsonObject) -> None:
    """It ends now, as after the last retry."""
    _end(account, subscription, "payment_failed")


def _end(account: Account, subscription: JsonObject, reason: str) -> None:
    now = account.clock.now()
    subscription |= {"status": "canceled", "ended_at": now, "canceled_at": subscription["canceled_at"] or now}
    subscription["cancellation_details"] = {**subscription["cancellation_details"], "reason": reason}
    account.emit("customer.subscription.deleted", subscription)


# What the API does.


def cancel(account: Account, subscription: JsonObject, parameters: JsonObject) -> None:
    """End it now. https://docs.stripe.com/api/subscriptions/cancel

    :raises StripeError: when it has ended
    """
    if subscription["status"] in ENDED:
        raise no_such("subscription", subscription["id"], param="id")
    subscription["cancellation_details"] |= parameters.get("cancellation_details", {})
    _end(account, subscription, "cancellation_requested")


def resume(account: Account, subscription: JsonObject, parameters: JsonObject) -> None:
    """Go on with one that is paused. https://docs.stripe.com/api/subscriptions/resume

    :raises StripeError: when it isn't
    """
    if subscription["status"] != "paused":
        raise invalid("You can only resume a subscription that has a status of paused.")
    _update(account, subscription, status="active")
    account.emit("customer.subscription.resumed", subscription)


def update(account: Account, subscription: JsonObject, parameters: JsonObject) -> None:
    """Change it. https://docs.stripe.com/api/subscriptions/update

    :raises StripeError: when it has ended, or what is due at once is declined
    """
    if subscription["status"] in ENDED:
        message = "A canceled subscription can only update its cancellation_details and metadata."
        raise invalid(message)
    changes: dict[str, Any] = {}
    if "metadata" in parameters:
        changes["metadata"] = subscription["metadata"] | parameters["metadata"]
    if "cancel_at_period_end" in parameters:
        changes |= _scheduled_end(account, subscription, at_period_end=parameters["cancel_at_period_end"])
    if parameters.get("cancel_at") == "":
        changes |= _scheduled_end(account, subscription, at_period_end=False)
    if "items" in parameters:
        _change_items(account, subscription, parameters, changes)
    elif changes:
        _update(account, subscription, **changes)


def _scheduled_end(account: Account, subscription: JsonObject, *, at_period_end: bool) -> JsonObject:
    ends_at = max(item["current_period_end"] for item in subscription["items"]["data"]) if at_period_end else None
    now = account.clock.now() if at_period_end else None
    return {"cancel_at_period_end": at_period_end, "cancel_at": ends_at, "canceled_at": now}


def _change_items(account: Account, subscription: JsonObject, parameters: JsonObject, changes: JsonObject) -> None:
    """Change items, and ask for the difference as the proration says.

    https://docs.stripe.com/billing/subscriptions/prorations
    """
    items, prorations = snapshot(subscription["items"]), []
    for at, given in enumerate(parameters["items"]):
        item = _named_item(items, given, at)
        before = snapshot(item)
        if "price" in given:
            item["price"] = _recurring_price(account, given["price"], item, at)
        item["quantity"] = given.get("quantity", item["quantity"])
        prorations.append(_proration(account, before, item))
    behavior = parameters.get("proration_behavior", "create_prorations")
    at_once = behavior == "always_invoice"
    billing = _billing(account, subscription)
    if at_once and billing["card_declines"] and parameters.get("payment_behavior") == "error_if_incomplete":
        raise _declined(account, sum(map(amount_of, prorations)), subscription)
    _update(account, subscription, items=items, **changes)
    if at_once:
        _bill_at_once(account, subscription, prorations)
    elif behavior == "create_prorations":
        billing["prorations"] += prorations


def _bill_at_once(account: Account, subscription: JsonObject, prorations: list[JsonObject]) -> None:
    intent = bill(account, subscription, "subscription_update", prorations)
    if intent is not None:
        _try(account, subscription, intent, fail=False)


def _named_item(items: JsonObject, given: JsonObject, at: int) -> JsonObject:
    if "id" not in given:
        raise missing_parameter(f"items[{at}][id]")
    for item in items["data"]:
        if item["id"] == given["id"]:
            found: JsonObject = item
            return found
    raise no_such("subscription item", given["id"], param=f"items[{at}][id]", status=400)


def _recurring_price(account: Account, price_id: str, item: JsonObject, at: int) -> JsonObject:
    price = account.named("price", price_id, param=f"items[{at}][price]")
    recurring, before = price["recurring"], item["price"]["recurring"]
    if not recurring or any(recurring[name] != before[name] for name in ("interval", "interval_count")):
        raise invalid("The sandbox has changes within one billing interval only.", param=f"items[{at}][price]")
    return price


def _proration(account: Account, before: JsonObject, item: JsonObject) -> JsonObject:
    """What is due for the rest of the period: the difference, in proportion to the time that is left."""
    start, period_end = item["current_period_start"], item["current_period_end"]
    left = min(max(period_end - account.clock.now(), 0), period_end - start)
    difference = amount_of(item) - amount_of(before)
    return {
        "proration": True,
        "price": item["price"],
        "quantity": item["quantity"],
        "amount": difference * left // (period_end - start),
    }


def _declined(account: Account, amount: int, subscription: JsonObject) -> Exception:
    """The card declines what was to be paid at once: nothing is changed, and what was made for it is void."""
    terms = {"amount": amount, "currency": subscription["currency"], "customer": subscription["customer"]}
    intent = payment_intents.create(account, terms | {"description": "Subscription update"})
    charge = payment_intents.decline(account, intent)
    payment_intents.cancel(account, intent, "void_invoice")
    return charges.declined(charge, intent, charges.GENERIC_DECLINE)


# How it changes.


def _subscription_of(account: Account, invoice: JsonObject) -> JsonObject:
    return account.objects["subscription"][invoice["parent"]["subscription_details"]["subscription"]]


def _billing(account: Account, subscription: JsonObject) -> JsonObject:
    return account.billing.setdefault(subscription["id"], {"card_declines": False, "prorations": []})


def _change_status(account: Account, subscription: JsonObject, changes: dict[str, str]) -> None:
    if subscription["status"] in changes:
        _update(account, subscription, status=changes[subscription["status"]])


def _update(account: Account, subscription: JsonObject, **changes: Any) -> None:
    """Change it, and tell what the changed fields were before."""
    previous = {name: subscription[name] for name, value in changes.items() if subscription[name] != value}
    subscription |= changes
    account.emit("customer.subscription.updated", subscription, previous=snapshot(previous))
