"""What the end of a payment intent's try means for the objects that wait for it."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import checkout_sessions, invoices, subscriptions
from app.sandbox.stripe.account import Account

ENDS = {"payment_intent.succeeded", "payment_intent.payment_failed"}


def react(account: Account, event_type: str, changed: JsonObject) -> None:
    if event_type not in ENDS:
        return
    if invoices.is_paid_by(account, changed):
        invoices.follow(account, changed)
    else:
        subscriptions.follow(account, changed)
    checkout_sessions.follow(account, changed)
