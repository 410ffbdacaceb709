"""The pages for people: all that there is, with a button for whatever can happen to it, and the checkout page."""

from dataclasses import dataclass, field
from itertools import islice

from flask import Blueprint, redirect, render_template, request
from werkzeug.wrappers import Response

from app.sandbox.actions import RESOURCES, find, perform, possible_actions
from app.sandbox.clock import iso
from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.account import Account
from app.sandbox.stripe.errors import StripeError
from app.sandbox.stripe.money import display
from app.sandbox.webhooks import MODES
from app.sandbox.world import World, current_world

SHOWN = 50
TITLES = {
    "checkout": "Checkout sessions",
    "intents": "Payment intents",
    "charges": "Charges",
    "refunds": "Refunds",
    "disputes": "Disputes",
    "subscriptions": "Subscriptions",
}
PAGES = {"checkout": "/pay/", "intents": "/intent/"}
# The second way of doing something: its label and what it is done with.
VARIANTS = {
    "refund": ("refund, pending", {"pending": "yes"}),
    "dispute": ("inquire", {"warning": "yes"}),
    "renew": ("renew, fails", {"fail": "yes"}),
}
# Leaving the checkout page changes nothing, so that there is no button for it elsewhere.
BACK = ("checkout", "cancel")

blueprint = Blueprint("pages", __name__)


@dataclass(frozen=True)
class Button:
    """Something that can be done, and the form fields that it is done with."""

    action: str
    label: str
    fields: dict[str, str] = field(default_factory=dict)


@blueprint.app_template_filter("time")
def format_time(timestamp: float) -> str:
    return iso(timestamp)[:19].replace("T", " ")


blueprint.add_app_template_filter(display, "money")


@blueprint.errorhandler(StripeError)
def refuse(error: StripeError) -> tuple[str, int]:
    return render_template("message.html", message=error.error["message"]), error.status


@blueprint.get("/")
def index() -> str:
    world = current_world()
    events = [event for account in world.accounts.by_id.values() for event in _newest(account, "event")]
    events.sort(key=lambda event: event["created"], reverse=True)
    return render_template(
        "index.html",
        accounts=[_account_view(world, account) for account in world.accounts.by_id.values()],
        events=[(event, world.outbox.states(event["id"])) for event in events[:SHOWN]],
        runs=world.runs.all()[:SHOWN],
        webhooks=world.outbox.summary(),
        modes=MODES,
        now=world.clock.time(),
        shown=SHOWN,
    )


def _account_view(world: World, account: Account) -> JsonObject:
    sections = {
        kind: [(found, _describe(kind, found), _buttons(kind, account, found)) for found in _newest(account, resource)]
        for kind, resource in RESOURCES.items()
    }
    return {
        "id": account.id,
        "apps": world.keys.apps_of(account.id),
        "sections": [(kind, TITLES[kind], rows, PAGES.get(kind)) for kind, rows in sections.items() if rows],
    }


def _newest(account: Account, resource: str) -> list[JsonObject]:
    return list(islice(reversed(account.objects[resource].values()), SHOWN))


def _describe(kind: str, found: JsonObject) -> JsonObject:
    """What the object's row says of its money and its state."""
    currency = found["currency"]
    if kind == "checkout":
        return {
            "amount": display(found["amount_total"], currency),
            "state": f"{found['status']}, {found['payment_status']}",
        }
    if kind == "subscriptions":
        amount = sum(item["price"]["unit_amount"] * item["quantity"] for item in found["items"]["data"])
        return {"amount": display(amount, currency), "state": found["status"]}
    states = [found["status"]]
    if kind == "charges" and found["amount_refunded"]:
        states.append(f"{display(found['amount_refunded'], currency)} given back")
    if kind == "charges" and found["disputed"]:
        states.append("disputed")
    return {"amount": display(found["amount"], currency), "state": ", ".join(states)}


def _buttons(kind: str, account: Account, found: JsonObject) -> list[Button]:
    buttons = []
    for action in possible_actions(kind, account, found):
        if (kind, action) == BACK:
            continue
        buttons.append(Button(action, action.replace("_", " ")))
        if action in VARIANTS:
            label, fields = VARIANTS[action]
            buttons.append(Button(action, label, fields))
    return buttons


@blueprint.post(
    "/actions/<any(checkout, intents, charges, refunds, disputes, subscriptions):kind>/<identifier>/<action>"
)
def act(kind: str, identifier: str, action: str) -> Response:
    _perform(kind, identifier, action)
    return redirect("/", 303)


@blueprint.post("/mode")
def set_mode() -> Response:
    mode = request.form.get("mode", "")
    if mode in MODES:
        current_world().outbox.mode = mode
    return redirect("/", 303)


@blueprint.post("/release")
def release() -> Response:
    current_world().outbox.release()
    return redirect("/", 303)


@blueprint.post("/events/<identifier>/deliver")
def deliver(identifier: str) -> Response:
    world = current_world()
    found = world.accounts.find("event", identifier)
    if found is not None:
        world.outbox.deliver(*found)
    return redirect("/", 303)


@blueprint.get("/pay/<identifier>")
def checkout_page(identifier: str) -> str:
    """The page that Stripe would host for a checkout session."""
    account, session = find(current_world().accounts, "checkout", identifier)
    checkout = account.checkouts[identifier]
    intent = account.get("payment_intent", checkout["payment_intent"] or "")
    return render_template(
        "pay.html",
        session=session,
        items=checkout["line_items"],
        error=intent and intent["last_payment_error"],
        actions=possible_actions("checkout", account, session),
    )


@blueprint.post("/pay/<identifier>/<any(pay, pay_later, decline, cancel):action>")
def use_checkout_page(identifier: str, action: str) -> Response:
    session = _perform("checkout", identifier, action)
    if action == "decline":
        return redirect(f"/pay/{identifier}", 303)
    target = session["cancel_url"] if action == "cancel" else session["success_url"]
    return redirect((target or f"/pay/{identifier}").replace("{CHECKOUT_SESSION_ID}", identifier), 303)


@blueprint.get("/intent/<identifier>")
def intent_page(identifier: str) -> str:
    """A page on which a payment intent can be paid, as an app's own page would with Stripe's elements."""
    account, intent = find(current_world().accounts, "intents", identifier)
    return render_template("intent.html", intent=intent, buttons=_buttons("intents", account, intent))


@blueprint.post("/intent/<identifier>/<action>")
def use_intent_page(identifier: str, action: str) -> Response:
    _perform("intents", identifier, action)
    return redirect(f"/intent/{identifier}", 303)


def _perform(kind: str, identifier: str, action: str) -> JsonObject:
    base_url = request.host_url.rstrip("/")
    return perform(current_world().accounts, kind, identifier, action, request.form.to_dict(), base_url=base_url)
