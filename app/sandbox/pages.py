"""The pages for people: all that there is, with a button for whatever can happen to it, and the checkout page."""

from urllib.parse import urlencode

from flask import Blueprint, redirect, render_template, request
from werkzeug.wrappers import Response

from app.sandbox import paid
from app.sandbox.actions import KINDS, find, perform, possible_actions
from app.sandbox.facts import all_facts, service_url
from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.errors import StripeError
from app.sandbox.stripe.money import display
from app.sandbox.tables import TABLES, Table, buttons_of, format_time, page_of
from app.sandbox.webhooks import MODES
from app.sandbox.world import current_world

# What a customer can save on the page of a session in setup mode: published names, and what becomes of each.
SAVED_ON_PAGE = {
    "pm_card_visa": "Save a Visa card",
    "pm_card_mastercard": "Save a Mastercard",
    "pm_link": "Save a Link account",
    "pm_card_chargeCustomerFail": "Save a card that will be declined",
    "pm_card_authenticationRequired": "Save a card whose bank will ask",
    "pm_card_chargeDeclined": "Try a card that can't be saved",
}

blueprint = Blueprint("pages", __name__)
blueprint.add_app_template_filter(format_time, "time")
blueprint.add_app_template_filter(display, "money")


@blueprint.errorhandler(StripeError)
def refuse(error: StripeError) -> tuple[str, int]:
    return render_template("message.html", message=error.error["message"]), error.status


@blueprint.get("/")
def index() -> str:
    """Show one table, of which a part of the rows may be asked for by a text, and the state of the webhooks."""
    world = current_world()
    counts = [(table, len(table.found(world))) for table in TABLES]
    table = _chosen(counts)
    text = request.args.get("q", "")
    return render_template(
        "index.html",
        counts=counts,
        table=table,
        text=text,
        page=page_of(world, table, text=text, number=request.args.get("page", default=1, type=int)),
        query=_query(),
        webhooks=world.outbox.summary(),
        modes=MODES,
        now=world.clock.time(),
        facts=all_facts(world.settings, own_url=request.host_url.rstrip("/")),
        service_url=service_url(world.settings),
    )


def _chosen(counts: list[tuple[Table, int]]) -> Table:
    """The table that was asked for; otherwise the first that holds something."""
    for table, _ in counts:
        if table.name == request.args.get("table"):
            return table
    return next((table for table, count in counts if count), TABLES[0])


def _query() -> str:
    """The query of this request, for a form to send with it, and to come back to."""
    return f"?{request.query_string.decode('latin-1')}" if request.query_string else ""


@blueprint.post(f"/actions/<any({KINDS}):kind>/<identifier>/<action>")
def act(kind: str, identifier: str, action: str) -> Response:
    _perform(kind, identifier, action)
    return redirect(f"/{_query()}", 303)


@blueprint.post("/mode")
def set_mode() -> Response:
    mode = request.form.get("mode", "")
    if mode in MODES:
        current_world().outbox.mode = mode
    return redirect(f"/{_query()}", 303)


@blueprint.post("/release")
def release() -> Response:
    current_world().outbox.release()
    return redirect(f"/{_query()}", 303)


@blueprint.post("/events/<identifier>/deliver")
def deliver(identifier: str) -> Response:
    world = current_world()
    found = world.accounts.find("event", identifier)
    if found is not None:
        world.outbox.deliver(*found)
    return redirect(f"/{_query()}", 303)


@blueprint.get("/pay/<identifier>")
def checkout_page(identifier: str) -> str:
    """The page that Stripe would host for a checkout session."""
    account, session = find(current_world().accounts, "checkout", identifier)
    if session["mode"] == "setup":
        setup = account.objects["setup_intent"][session["setup_intent"]]
        return render_template("setup.html", session=session, error=setup["last_setup_error"], methods=SAVED_ON_PAGE)
    checkout = account.checkouts[identifier]
    intent = account.get("payment_intent", checkout["payment_intent"] or "")
    return render_template(
        "pay.html",
        session=session,
        items=checkout["line_items"],
        error=intent and intent["last_payment_error"],
        actions=possible_actions("checkout", account, session),
    )


@blueprint.post("/pay/<identifier>/<any(pay, pay_later, decline, cancel, save):action>")
def use_checkout_page(identifier: str, action: str) -> Response:
    session = _perform("checkout", identifier, action)
    target = session["cancel_url"] if action == "cancel" else _after_completion(session)
    return redirect((target or f"/pay/{identifier}").replace("{CHECKOUT_SESSION_ID}", identifier), 303)


def _after_completion(session: JsonObject) -> str | None:
    """Where the customer goes on; one who stays in a page of the app's, or has to try again, goes nowhere."""
    if session["status"] != "complete" or session.get("redirect_on_completion", "always") != "always":
        return None
    target: str | None = session["success_url"] or session.get("return_url")
    return target


@blueprint.get("/paid/<identifier>")
def paid_page(identifier: str) -> str:
    """What the service knows of a session's payment: where a customer may be sent after paying.

    The gateway holds no lock here, since the service, while it is asked, may be asking the stand-ins.
    """
    world = current_world()
    with world.lock:
        _, session = find(world.accounts, "checkout", identifier)
        question = paid.question(world, session)
    answer = paid.ask(question)
    return render_template("paid.html", session=session, answer=answer, look=request.args.get("look", 0, type=int))


@blueprint.get("/intent/<identifier>")
def intent_page(identifier: str) -> str:
    """A page on which a payment intent can be paid, as an app's own page would with Stripe's elements."""
    account, intent = find(current_world().accounts, "intents", identifier)
    return render_template(
        "intent.html", intent=intent, buttons=buttons_of("intents", account, intent, path=f"/intent/{identifier}")
    )


@blueprint.post("/intent/<identifier>/<action>")
def use_intent_page(identifier: str, action: str) -> Response:
    _, intent = find(current_world().accounts, "intents", identifier)
    waiting = intent["next_action"]
    _perform("intents", identifier, action)
    return redirect(_after_authentication(waiting, intent) or f"/intent/{identifier}", 303)


def _after_authentication(waiting: JsonObject | None, intent: JsonObject) -> str | None:
    """Where the app, which sent its customer here to answer the bank, wants him back."""
    target = (waiting or {}).get("redirect_to_url", {}).get("return_url")
    if target is None:
        return None
    told = {"payment_intent": intent["id"], "payment_intent_client_secret": intent["client_secret"]}
    return f"{target}{'&' if '?' in target else '?'}{urlencode(told)}"


def _perform(kind: str, identifier: str, action: str) -> JsonObject:
    base_url = request.host_url.rstrip("/")
    return perform(current_world().accounts, kind, identifier, action, request.form.to_dict(), base_url=base_url)
