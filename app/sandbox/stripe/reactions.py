"""What the end of a payment intent's try means for the objects that wait for it."""

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import checkout_sessions, subscriptions
from app.sandbox.stripe.account import Account

ENDS = {"payment_intent.succeeded", "payment_intent.payment_failed"}


def react(account: Account, event_type: str, changed: JsonObject) -> None:
    if event_type in ENDS:
        subscriptions.follow(account, changed)
        checkout_sessions.follow(account, changed)
