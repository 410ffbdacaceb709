"""The pages for an app's customers beside the checkout: saved methods, an invoice, a checkout inside another page."""

from flask import Blueprint, redirect, render_template, request
from werkzeug.wrappers import Response

from app.sandbox.actions import find, perform
from app.sandbox.json_object import JsonObject
from app.sandbox.pages import refuse
from app.sandbox.stripe import customers, payment_methods
from app.sandbox.stripe.account import Account, Caller
from app.sandbox.stripe.errors import StripeError, no_such
from app.sandbox.tables import buttons_of
from app.sandbox.world import current_world

blueprint = Blueprint("customer_pages", __name__)
blueprint.add_app_template_filter(payment_methods.describe, "method")
blueprint.register_error_handler(StripeError, refuse)


@blueprint.get("/portal/<identifier>")
def portal_page(identifier: str) -> str:
    """The page that Stripe would host for a portal session."""
    account, session, customer = _portal(identifier)
    methods = list(payment_methods.of_customer(account, customer["id"]))
    return render_template("portal.html", session=session, customer=customer, methods=methods)


@blueprint.post("/portal/<identifier>/<method_id>/<any(remove, default):action>")
def use_portal_page(identifier: str, method_id: str, action: str) -> Response:
    account, _, customer = _portal(identifier)
    method = account.get("payment_method", method_id)
    if method is None or method["customer"] != customer["id"]:
        raise no_such("payment_method", method_id, param="id")
    account.caller = Caller(base_url=request.host_url.rstrip("/"))
    if action == "remove":
        payment_methods.detach(account, method, {})
    else:
        customers.update(account, customer, {"invoice_settings": {"default_payment_method": method_id}})
    return redirect(f"/portal/{identifier}", 303)


def _portal(identifier: str) -> tuple[Account, JsonObject, JsonObject]:
    """:raises StripeError: when there is no such session, or its customer was deleted"""
    found = current_world().accounts.find("billing_portal.session", identifier)
    if found is None:
        raise no_such("billing_portal.session", identifier, param="id")
    account, session = found
    return account, session, account.named("customer", session["customer"], param="customer")


@blueprint.get("/invoice/<identifier>", defaults={"shown_as": "page"})
@blueprint.get("/invoice/<identifier>/<any(pdf):shown_as>")
def invoice_page(identifier: str, shown_as: str) -> str:
    """The page that Stripe would host for an invoice, which stands for its PDF too."""
    account, invoice = find(current_world().accounts, "invoices", identifier)
    buttons = buttons_of("invoices", account, invoice, path=f"/invoice/{identifier}")
    return render_template("invoice.html", invoice=invoice, buttons=buttons)


@blueprint.post("/invoice/<identifier>/<any(pay, decline):action>")
def use_invoice_page(identifier: str, action: str) -> Response:
    base_url = request.host_url.rstrip("/")
    perform(current_world().accounts, "invoices", identifier, action, {}, base_url=base_url)
    return redirect(f"/invoice/{identifier}", 303)


@blueprint.get("/embedded")
def embedding_page() -> str:
    """A page as an app's own would be, which shows the checkout of a client secret."""
    secret = request.args.get("client_secret", "")
    return render_template("embedded.html", client_secret=secret, session=_of_secret(secret))


@blueprint.get("/embedded/<client_secret>")
def embedded_checkout(client_secret: str) -> Response:
    """What an app's page shows inside: it knows the client secret, and nothing else of the session."""
    return redirect(f"/pay/{_of_secret(client_secret)['id']}", 303)


def _of_secret(client_secret: str) -> JsonObject:
    """:raises StripeError: when no session has that client secret"""
    identifier = client_secret.partition("_secret_")[0]
    _, session = find(current_world().accounts, "checkout", identifier)
    if session["client_secret"] != client_secret:
        raise no_such("checkout.session", identifier, param="client_secret")
    return session
