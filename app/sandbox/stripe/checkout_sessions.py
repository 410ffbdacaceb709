"""Checkout sessions: what they cost, and what the customer does on their page. https://docs.stripe.com/payments/checkout."""

from typing import Any

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import (
    catalog,
    checkout_items,
    checkout_options,
    customers,
    invoices,
    payment_intents,
    payment_methods,
    setup_intents,
    subscriptions,
)
from app.sandbox.stripe.account import Account, random_id
from app.sandbox.stripe.checkout_options import LIFETIME_SECONDS
from app.sandbox.stripe.errors import invalid, refused
from app.sandbox.stripe.money import check_total
from app.sandbox.stripe.parameters import chosen

DAY_SECONDS = 24 * 3600


def create(account: Account, parameters: JsonObject) -> JsonObject:
    """Open a session, whose page is served by the sandbox.

    :raises StripeError: when its parts don't fit together
    """
    checkout_options.check(account, parameters)
    if parameters["mode"] == "setup":
        return _open_setup(account, parameters)
    priced, items = checkout_items.read(account, parameters)
    discounts = [
        checkout_items.read_discount(account, given, items[0]["currency"]) for given in parameters.get("discounts", [])
    ]
    subtotal, reduction = checkout_items.amounts(account, items, discounts)
    check_total(subtotal - reduction, items[0]["currency"])
    for each in priced:
        catalog.keep(account, each)
    return _open(account, parameters, items, discounts)


def _open(account: Account, parameters: JsonObject, items: list[JsonObject], discounts: list[JsonObject]) -> JsonObject:
    subtotal, reduction = checkout_items.amounts(account, items, discounts)
    checkout_items.spread(reduction, items)
    session = _new(
        account,
        parameters,
        currency=items[0]["currency"],
        amount_subtotal=subtotal,
        amount_total=subtotal - reduction,
        total_details={"amount_discount": reduction, "amount_shipping": 0, "amount_tax": 0},
        discounts=discounts,
    )
    account.checkouts[session["id"]] |= {
        "line_items": items,
        "data": parameters.get("payment_intent_data", parameters.get("subscription_data", {})),
    }
    return session


def _open_setup(account: Account, parameters: JsonObject) -> JsonObject:
    """Open a session on whose page a customer leaves a payment method."""
    intent = setup_intents.create(account, parameters["customer"], parameters.get("setup_intent_data", {}))
    fields = {"currency": parameters.get("currency"), "setup_intent": intent["id"], "total_details": None}
    return _new(account, parameters, payment_status="no_payment_required", **fields)


def _new(account: Account, parameters: JsonObject, **fields: Any) -> JsonObject:
    session = account.new(
        "checkout.session",
        mode=parameters["mode"],
        expires_at=parameters.get("expires_at", account.clock.now() + LIFETIME_SECONDS),
        **checkout_options.shown(parameters),
        **fields,
    )
    session["custom_text"] |= parameters.get("custom_text") or {}
    session["url"] = f"{account.caller.base_url}/pay/{session['id']}"
    if session["ui_mode"] == "embedded_page":
        session |= {"url": None, "client_secret": random_id(f"{session['id']}_secret_")}
    account.checkouts[session["id"]] = {
        "line_items": [],
        "data": {},
        "payment_intent": None,
        "subscription": None,
        "delayed": False,
    }
    return session


def expire_if_due(account: Account, session: JsonObject) -> None:
    if session["status"] == "open" and session["expires_at"] <= account.clock.now():
        expire(account, session)


def expire(account: Account, session: JsonObject) -> None:
    """End an open session, and what a declined try has left.

    :raises StripeError: when it isn't open
    """
    if session["status"] != "open":
        raise refused(
            'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a status of '
            f"{session['status']}."
        )
    session |= {"status": "expired", "url": None}
    checkout = account.checkouts[session["id"]]
    if checkout["subscription"] is not None:
        subscriptions.give_up(account, account.objects["subscription"][checkout["subscription"]])
    if session["setup_intent"] is not None:
        setup_intents.cancel(account, account.objects["setup_intent"][session["setup_intent"]])
    if checkout["payment_intent"] is not None:
        payment_intents.cancel(account, account.objects["payment_intent"][checkout["payment_intent"]], "automatic")
    account.emit("checkout.session.expired", session)


def pay(account: Account, session: JsonObject, *, card: str | None = None) -> None:
    """The customer pays at once, with a new card or the one of that published name, and answers his bank."""
    intent = _payment(account, session)
    if intent is None:
        _complete(account, session, "no_payment_required")
        return
    if card is not None:
        intent["payment_method"] = payment_methods.named(account, card)["id"]
    payment_intents.pay(account, intent)
    _complete(account, session, "paid" if intent["status"] == "succeeded" else "unpaid")


def pay_later(account: Account, session: JsonObject) -> None:
    """The customer pays by a method that takes days: the session is complete and not yet paid."""
    intent = _payment(account, session)
    if intent is None:
        raise invalid("There is nothing to pay.")
    payment_intents.process(account, intent)
    checkout = account.checkouts[session["id"]]
    checkout["delayed"] = True
    if checkout["subscription"] is not None:
        subscriptions.activate(account, account.objects["subscription"][checkout["subscription"]])
    _complete(account, session, "unpaid")


def decline(account: Account, session: JsonObject) -> None:
    """The customer's card is declined; the session stays open."""
    intent = _payment(account, session)
    if intent is None:
        raise invalid("There is nothing to pay.")
    payment_intents.decline(account, intent)


def save(account: Account, session: JsonObject, *, card: str) -> None:
    """The customer leaves the method of that published name; if it is refused, the session stays open."""
    expire_if_due(account, session)
    if session["status"] != "open":
        raise invalid(f"This Checkout Session is {session['status']}.")
    intent = account.objects["setup_intent"][session["setup_intent"]]
    if setup_intents.confirm(account, intent, card):
        _complete(account, session, "no_payment_required")


def settle(account: Account, session: JsonObject) -> None:
    """The money of a delayed method arrives."""
    payment_intents.pay(account, _delayed_intent(account, session))


def fail_later(account: Account, session: JsonObject) -> None:
    """The money of a delayed method doesn't arrive."""
    payment_intents.decline(account, _delayed_intent(account, session))


def is_delayed(account: Account, session: JsonObject) -> bool:
    """Whether the session waits for the money of a delayed method."""
    return bool(account.checkouts[session["id"]]["delayed"])


def is_in_open_session(account: Account, intent: JsonObject) -> bool:
    session = _session_of(account, intent)
    return session is not None and session["status"] == "open"


def _session_of(account: Account, intent: JsonObject) -> JsonObject | None:
    for session_id, checkout in account.checkouts.items():
        if checkout["payment_intent"] == intent["id"]:
            return account.objects["checkout.session"][session_id]
    return None


def follow(account: Account, intent: JsonObject) -> None:
    """Let a completed session know how its intent ended."""
    session = _session_of(account, intent)
    if session is None or session["status"] != "complete":
        return
    paid = intent["status"] == "succeeded"
    if paid:
        session["payment_status"] = "paid"
    if is_delayed(account, session):
        account.checkouts[session["id"]]["delayed"] = False
        account.emit(f"checkout.session.async_payment_{'succeeded' if paid else 'failed'}", session)


def _payment(account: Account, session: JsonObject) -> JsonObject | None:
    """The payment intent of an open session, made at the first try; None when there is nothing to pay."""
    expire_if_due(account, session)
    if session["status"] != "open":
        raise invalid(f"This Checkout Session is {session['status']}.")
    checkout = account.checkouts[session["id"]]
    if checkout["payment_intent"] is not None:
        return account.objects["payment_intent"][checkout["payment_intent"]]
    intent = _subscribe(account, session) if session["mode"] == "subscription" else _new_intent(account, session)
    checkout["payment_intent"] = intent and intent["id"]
    return intent


def _new_intent(account: Account, session: JsonObject) -> JsonObject | None:
    if session["amount_total"] == 0:
        return None
    data = account.checkouts[session["id"]]["data"]
    creation = session["invoice_creation"] or {}
    keeps_customer = session["customer_creation"] == "always" or "setup_future_usage" in data or creation.get("enabled")
    if session["customer"] is None and keeps_customer:
        session["customer"] = customers.create(account, {"email": _email(account, session)})["id"]
    terms = {"amount": session["amount_total"], "currency": session["currency"], "customer": session["customer"]}
    return payment_intents.create(account, data | terms)


def _subscribe(account: Account, session: JsonObject) -> JsonObject | None:
    if session["customer"] is None:
        session["customer"] = customers.create(account, {"email": _email(account, session)})["id"]
    checkout = account.checkouts[session["id"]]
    subscription = subscriptions.create(account, session, checkout["line_items"], checkout["data"])
    checkout["subscription"] = subscription["id"]
    lines = checkout["line_items"]
    if "trial_period_days" in checkout["data"]:
        lines = [line for line in lines if not line["price"]["recurring"]]
        _start_trial(account, subscription, checkout["data"]["trial_period_days"])
    intent = subscriptions.bill(account, subscription, "subscription_create", lines)
    if intent is not None:
        intent["setup_future_usage"] = "off_session"
    return intent


def _start_trial(account: Account, subscription: JsonObject, days: int) -> None:
    """The first period is free, and costs nothing until it ends."""
    end = subscription["start_date"] + days * DAY_SECONDS
    subscription |= {"status": "trialing", "trial_start": subscription["start_date"], "trial_end": end}
    subscription["billing_cycle_anchor"] = end
    for item in subscription["items"]["data"]:
        item["current_period_end"] = end
    account.emit("customer.subscription.updated", subscription, previous={"status": "incomplete"})


def _complete(account: Account, session: JsonObject, payment_status: str) -> None:
    checkout = account.checkouts[session["id"]]
    session |= {"status": "complete", "payment_status": payment_status, "url": None}
    session["customer_details"] = {
        "address": None,
        "email": _email(account, session),
        "name": None,
        "phone": None,
        "tax_exempt": "none",
        "tax_ids": [],
    }
    if session["automatic_tax"]["enabled"]:
        session["automatic_tax"]["status"] = "complete"
    if checkout["subscription"] is None:
        session["payment_intent"] = checkout["payment_intent"]
        _invoice(account, session)
    else:
        subscription = account.objects["subscription"][checkout["subscription"]]
        session |= {"subscription": subscription["id"], "invoice": subscription["latest_invoice"]}
    for discount in session["discounts"]:
        catalog.redeem(account, discount)
    account.emit("checkout.session.completed", session)


def _invoice(account: Account, session: JsonObject) -> None:
    """Make the invoice of a payment, where one was asked for."""
    creation = session["invoice_creation"] or {}
    intent = account.get("payment_intent", session["payment_intent"] or "")
    if intent is None or not creation.get("enabled"):
        return
    lines = [
        {"amount": item["amount_total"], "description": item["description"], "quantity": item["quantity"]}
        for item in account.checkouts[session["id"]]["line_items"]
    ]
    fields = chosen(creation.get("invoice_data", {}), "description", "footer", "metadata")
    session["invoice"] = invoices.of_payment(account, intent, lines, fields=fields)["id"]


def _email(account: Account, session: JsonObject) -> str:
    customer = account.get("customer", session["customer"] or "") or {}
    return session["customer_email"] or customer.get("email") or "customer@example.com"


def _delayed_intent(account: Account, session: JsonObject) -> JsonObject:
    if not is_delayed(account, session):
        raise invalid("This Checkout Session isn't waiting for a delayed payment method.")
    return account.objects["payment_intent"][account.checkouts[session["id"]]["payment_intent"]]
