"""What a customer, a bank or time does to an object, for the control API and the pages."""

from collections.abc import Callable
from dataclasses import dataclass

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe import (
    checkout_sessions,
    disputes,
    invoices,
    payment_intents,
    payment_methods,
    refunds,
    subscriptions,
)
from app.sandbox.stripe.account import Account, Accounts, Caller
from app.sandbox.stripe.errors import invalid, no_such

Run = Callable[[Account, JsonObject, JsonObject], JsonObject | None]
Possible = Callable[[Account, JsonObject], bool]


@dataclass(frozen=True)
class Action:
    """Something that can be done to an object while `possible`; `run` returns what it made, if anything."""

    run: Run
    possible: Possible


def _status(*statuses: str) -> Possible:
    return lambda account, found: found["status"] in statuses


def _intent_status(*statuses: str) -> Possible:
    """The intent of an open checkout session is paid on the session's page."""
    return lambda account, found: (
        found["status"] in statuses and not checkout_sessions.is_in_open_session(account, found)
    )


def _is_setup(account: Account, session: JsonObject) -> bool:
    return bool(session["status"] == "open" and session["mode"] == "setup")


def _has_items(account: Account, session: JsonObject) -> bool:
    return bool(session["status"] == "open" and session["mode"] != "setup")


def _has_way_back(account: Account, session: JsonObject) -> bool:
    return bool(session["status"] == "open" and session["ui_mode"] == "hosted_page")


def _pay_session(account: Account, session: JsonObject, given: JsonObject) -> None:
    checkout_sessions.pay(account, session, card=given.get("card"))


def _save_method(account: Account, session: JsonObject, given: JsonObject) -> None:
    checkout_sessions.save(account, session, card=given.get("card", "pm_card_visa"))


def _payable(account: Account, session: JsonObject) -> bool:
    return session["status"] == "open" and bool(session["amount_total"])


def _refundable(account: Account, charge: JsonObject) -> bool:
    return bool(charge["captured"]) and not charge["refunded"] and not refunds.is_charged_back(account, charge)


def _disputable(account: Account, charge: JsonObject) -> bool:
    return bool(charge["captured"]) and not charge["disputed"]


def _refund(account: Account, charge: JsonObject, given: JsonObject) -> JsonObject:
    status = "pending" if given.get("pending") else "requires_action" if given.get("requires_action") else "succeeded"
    return refunds.refund(account, charge, amount=given.get("amount"), status=status)


def _refund_amount(account: Account, charge: JsonObject, amount: int) -> JsonObject:
    return refunds.refund(account, charge, amount=amount)


def _half_is_left(account: Account, charge: JsonObject) -> bool:
    half = charge["amount_captured"] // 2
    return _refundable(account, charge) and 0 < half <= charge["amount"] - charge["amount_refunded"]


def _fails(account: Account, refund: JsonObject) -> bool:
    return refund["status"] in refunds.FAILABLE and not refunds.is_release(refund)


def _dispute(account: Account, charge: JsonObject, given: JsonObject) -> JsonObject:
    warning = bool(given.get("warning"))
    return disputes.open_dispute(account, charge, amount=given.get("amount"), warning=warning)


def _renew(account: Account, subscription: JsonObject, given: JsonObject) -> None:
    subscriptions.renew(account, subscription, fail=bool(given.get("fail")), ask=bool(given.get("ask")))


def _retry(account: Account, subscription: JsonObject, given: JsonObject) -> None:
    subscriptions.retry(account, subscription, fail=bool(given.get("fail")))


def _is_payable(account: Account, invoice: JsonObject) -> bool:
    """A subscription's invoice is paid by what its renewal does."""
    return invoice["status"] == "open" and invoice["parent"] is None


def _of_its_intent(change: Callable[[Account, JsonObject], object]) -> Run:
    """The customer does something on the invoice's page."""

    def run(account: Account, invoice: JsonObject, given: JsonObject) -> None:
        intent = invoices.intent_of(account, invoice)
        if intent is not None:
            change(account, intent)

    return run


def _is_saved(account: Account, method: JsonObject) -> bool:
    return method["customer"] is not None


def _behave(kind: str) -> Run:
    """Let payments with the method be, from now on, what they are with that test card."""

    def run(account: Account, method: JsonObject, given: JsonObject) -> None:
        payment_methods.behave(account, method, kind)

    return run


def _behave_as_told(account: Account, method: JsonObject, given: JsonObject) -> None:
    payment_methods.behave(account, method, str(given.get("as")))


def _detach(account: Account, method: JsonObject) -> None:
    payment_methods.detach(account, method, {})


def _half(amount: str, change: Callable[[Account, JsonObject, int], JsonObject | None]) -> Run:
    """Do something with half of what an amount of the object's is."""
    return lambda account, found, given: change(account, found, found[amount] // 2)


def _plain(change: Callable[[Account, JsonObject], object]) -> Run:
    def run(account: Account, found: JsonObject, given: JsonObject) -> None:
        change(account, found)

    return run


UNPAID, OPEN = payment_intents.UNPAID, _status("open")
RESOURCES = {
    "checkout": "checkout.session",
    "intents": "payment_intent",
    "charges": "charge",
    "refunds": "refund",
    "disputes": "dispute",
    "subscriptions": "subscription",
    "methods": "payment_method",
    "invoices": "invoice",
}
# The kinds as a route names them.
KINDS = ", ".join(RESOURCES)
ACTIONS: dict[str, dict[str, Action]] = {
    "checkout": {
        "pay": Action(_pay_session, _has_items),
        "save": Action(_save_method, _is_setup),
        "pay_later": Action(_plain(checkout_sessions.pay_later), _payable),
        "decline": Action(_plain(checkout_sessions.decline), _payable),
        "cancel": Action(lambda account, session, given: None, _has_way_back),
        "expire": Action(_plain(checkout_sessions.expire), OPEN),
        "settle": Action(_plain(checkout_sessions.settle), checkout_sessions.is_delayed),
        "fail_later": Action(_plain(checkout_sessions.fail_later), checkout_sessions.is_delayed),
    },
    "intents": {
        "pay": Action(_plain(payment_intents.pay), _intent_status(*UNPAID, "processing")),
        "decline": Action(_plain(payment_intents.decline), _intent_status(*UNPAID, "processing")),
        "require_action": Action(_plain(payment_intents.require_action), _intent_status(*UNPAID[:2])),
        "authorize": Action(_plain(payment_intents.authorize), _intent_status(*UNPAID)),
        "process": Action(_plain(payment_intents.process), _intent_status(*UNPAID)),
        "capture": Action(
            lambda account, intent, given: payment_intents.capture(account, intent, given.get("amount")),
            _intent_status("requires_capture"),
        ),
        "capture_half": Action(_half("amount_capturable", payment_intents.capture), _intent_status("requires_capture")),
        "cancel": Action(_plain(payment_intents.cancel), _intent_status(*payment_intents.CANCELABLE)),
        "expire": Action(_plain(payment_intents.expire), _status("requires_capture")),
    },
    "charges": {
        "refund": Action(_refund, _refundable),
        "refund_half": Action(_half("amount_captured", _refund_amount), _half_is_left),
        "dispute": Action(_dispute, _disputable),
    },
    "refunds": {
        "succeed": Action(_plain(refunds.succeed), _status(*refunds.UNSETTLED)),
        "fail": Action(_plain(refunds.fail), _fails),
        "cancel": Action(_plain(refunds.cancel), _status("requires_action")),
    },
    "disputes": {
        "win": Action(_plain(disputes.win), _status(*disputes.OPEN)),
        "lose": Action(_plain(disputes.lose), _status(*disputes.OPEN)),
        "close_warning": Action(_plain(disputes.close_warning), _status(*disputes.OPEN_INQUIRY)),
        "prevent": Action(_plain(disputes.prevent), _status(*disputes.OPEN, *disputes.OPEN_INQUIRY)),
    },
    "methods": {
        "accept": Action(_behave("visa"), _is_saved),
        "decline": Action(_behave("chargeCustomerFail"), _is_saved),
        "ask": Action(_behave("authenticationRequired"), _is_saved),
        "take_days": Action(_behave("takesDays"), _is_saved),
        "behave": Action(_behave_as_told, _is_saved),
        "detach": Action(_plain(_detach), _is_saved),
    },
    "invoices": {
        "pay": Action(_of_its_intent(payment_intents.pay), _is_payable),
        "decline": Action(_of_its_intent(payment_intents.decline), _is_payable),
        "void": Action(lambda account, invoice, given: invoices.void(account, invoice, {}), _is_payable),
    },
    "subscriptions": {
        "renew": Action(_renew, _status(*subscriptions.RENEWABLE)),
        "retry": Action(_retry, subscriptions.is_owed),
        "settle_outside": Action(_plain(subscriptions.settle_outside), subscriptions.is_owed),
        "void_invoice": Action(_plain(subscriptions.void_invoice), subscriptions.is_owed),
        "stop_trying": Action(_plain(subscriptions.stop_trying), _status("past_due")),
        "swap_card": Action(_plain(subscriptions.swap_card), _status(*subscriptions.RENEWABLE, "unpaid")),
        "pause": Action(_plain(subscriptions.pause), _status("trialing", "active")),
        "end": Action(_plain(subscriptions.end), _status(*subscriptions.RENEWABLE, "unpaid", "paused")),
    },
}


def possible_actions(kind: str, account: Account, found: JsonObject) -> list[str]:
    return [name for name, action in ACTIONS[kind].items() if action.possible(account, found)]


def find(accounts: Accounts, kind: str, identifier: str) -> tuple[Account, JsonObject]:
    """Return the object and its account; a charge can also be named by its payment intent.

    :raises StripeError: when there is none
    """
    found = accounts.find(RESOURCES[kind], identifier)
    if found is None and kind == "charges":
        intent = accounts.find("payment_intent", identifier)
        found = accounts.find("charge", intent[1]["latest_charge"] or "") if intent else None
    if found is None:
        raise no_such(RESOURCES[kind], identifier, param="id")
    if kind == "checkout":
        checkout_sessions.expire_if_due(*found)
    elif kind == "intents":
        payment_intents.expire_if_due(*found)
    return found


def perform(
    accounts: Accounts, kind: str, identifier: str, action: str, given: JsonObject, *, base_url: str
) -> JsonObject:
    """Do it, and return the object that it made, or changed.

    :raises StripeError: when there is no such object, or it isn't possible now
    """
    account, found = find(accounts, kind, identifier)
    if action not in possible_actions(kind, account, found):
        status = found.get("status") or "state"
        raise invalid(f"{action} isn't possible for {identifier} now: its status is {status}.")
    account.caller = Caller(base_url=base_url)
    return ACTIONS[kind][action].run(account, found, given) or found
