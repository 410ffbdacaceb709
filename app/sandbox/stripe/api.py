"""Stripe's HTTP API, version of the SDK in use: routes, authentication, idempotency keys and the error envelope."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import stripe
from flask import Blueprint, Response, g, request
from stripe import params
from werkzeug.http import http_date

from app.sandbox.json_object import JsonObject
from app.sandbox.ledger import note
from app.sandbox.stripe import (
    catalog,
    checkout_sessions,
    confirmation,
    customers,
    expansion,
    forms,
    idempotency,
    invoice_items,
    invoices,
    lists,
    parameters,
    payment_intents,
    payment_methods,
    portal_sessions,
    refunds,
    subscriptions,
    webhook_endpoints,
)
from app.sandbox.stripe.account import Account, Caller, random_id
from app.sandbox.stripe.errors import StripeError, invalid, no_such, unauthorized
from app.sandbox.world import current_world

EVENTS_LISTABLE_SECONDS = 30 * 24 * 3600
MAX_EVENT_TYPES = 20
SESSIONS = "checkout.session"
UNCANCELED = {"active", "incomplete", "past_due", "paused", "trialing", "unpaid"}


@dataclass(frozen=True)
class Resource:
    """How objects are reached: the path, the parameters that are allowed, and the name that errors call them."""

    name: str
    path: str
    list_shape: Any
    retrieve_shape: Any
    param: str = "id"


RESOURCES = (
    Resource(
        "payment_intent",
        "payment_intents",
        params.PaymentIntentListParams,
        params.PaymentIntentRetrieveParams,
        "intent",
    ),
    Resource("charge", "charges", params.ChargeListParams, params.ChargeRetrieveParams, "charge"),
    Resource("refund", "refunds", params.RefundListParams, params.RefundRetrieveParams, "refund"),
    Resource("dispute", "disputes", params.DisputeListParams, params.DisputeRetrieveParams, "dispute"),
    Resource(
        SESSIONS,
        "checkout/sessions",
        params.checkout.SessionListParams,
        params.checkout.SessionRetrieveParams,
        "session",
    ),
    Resource("product", "products", params.ProductListParams, params.ProductRetrieveParams),
    Resource("price", "prices", params.PriceListParams, params.PriceRetrieveParams, "price"),
    Resource("coupon", "coupons", params.CouponListParams, params.CouponRetrieveParams, "coupon"),
    Resource("promotion_code", "promotion_codes", params.PromotionCodeListParams, params.PromotionCodeRetrieveParams),
    Resource("customer", "customers", params.CustomerListParams, params.CustomerRetrieveParams),
    Resource(
        "payment_method",
        "payment_methods",
        params.PaymentMethodListParams,
        params.PaymentMethodRetrieveParams,
        "payment_method",
    ),
    Resource("setup_intent", "setup_intents", params.SetupIntentListParams, params.SetupIntentRetrieveParams, "intent"),
    Resource("subscription", "subscriptions", params.SubscriptionListParams, params.SubscriptionRetrieveParams),
    Resource("invoice", "invoices", params.InvoiceListParams, params.InvoiceRetrieveParams, "invoice"),
    Resource("invoiceitem", "invoiceitems", params.InvoiceItemListParams, params.InvoiceItemRetrieveParams),
    Resource(
        "invoice_payment", "invoice_payments", params.InvoicePaymentListParams, params.InvoicePaymentRetrieveParams
    ),
    Resource(
        webhook_endpoints.RESOURCE,
        "webhook_endpoints",
        params.WebhookEndpointListParams,
        params.WebhookEndpointRetrieveParams,
        "webhook_endpoint",
    ),
    Resource("event", "events", params.EventListParams, params.EventRetrieveParams),
)
BY_PATH = {resource.path: resource for resource in RESOURCES}
# What is created, by its path; a portal session can't be retrieved.
NAMES = {path: resource.name for path, resource in BY_PATH.items()} | {
    "billing_portal/sessions": "billing_portal.session"
}


def _capture_intent(account: Account, intent: JsonObject, given: JsonObject) -> None:
    payment_intents.capture(account, intent, given.get("amount_to_capture"))


def _cancel_intent(account: Account, intent: JsonObject, given: JsonObject) -> None:
    payment_intents.cancel(account, intent, given.get("cancellation_reason"))


def _expire_session(account: Account, session: JsonObject, given: JsonObject) -> None:
    checkout_sessions.expire(account, session)


def _cancel_refund(account: Account, refund: JsonObject, given: JsonObject) -> None:
    refunds.cancel(account, refund)


CREATIONS: dict[str, tuple[Any, Callable[[Account, JsonObject], JsonObject]]] = {
    "payment_intents": (params.PaymentIntentCreateParams, confirmation.create),
    "checkout/sessions": (params.checkout.SessionCreateParams, checkout_sessions.create),
    "refunds": (params.RefundCreateParams, refunds.create),
    "products": (params.ProductCreateParams, catalog.create_product),
    "prices": (params.PriceCreateParams, catalog.create_price),
    "coupons": (params.CouponCreateParams, catalog.create_coupon),
    "promotion_codes": (params.PromotionCodeCreateParams, catalog.create_promotion_code),
    "customers": (params.CustomerCreateParams, customers.create),
    "webhook_endpoints": (params.WebhookEndpointCreateParams, webhook_endpoints.create),
    "billing_portal/sessions": (params.billing_portal.SessionCreateParams, portal_sessions.create),
    "invoices": (params.InvoiceCreateParams, invoices.create),
    "invoiceitems": (params.InvoiceItemCreateParams, invoice_items.create),
}
ACTIONS: dict[tuple[str, str], tuple[Any, Callable[[Account, JsonObject, JsonObject], None]]] = {
    ("payment_intents", "update"): (params.PaymentIntentUpdateParams, confirmation.update),
    ("payment_intents", "confirm"): (params.PaymentIntentConfirmParams, confirmation.confirm),
    ("payment_intents", "capture"): (params.PaymentIntentCaptureParams, _capture_intent),
    ("payment_intents", "cancel"): (params.PaymentIntentCancelParams, _cancel_intent),
    ("checkout/sessions", "expire"): (params.checkout.SessionExpireParams, _expire_session),
    ("customers", "update"): (params.CustomerUpdateParams, customers.update),
    ("invoices", "update"): (params.InvoiceUpdateParams, invoices.update),
    ("invoices", "finalize"): (params.InvoiceFinalizeInvoiceParams, invoices.finalize),
    ("invoices", "pay"): (params.InvoicePayParams, invoices.pay),
    ("invoices", "void"): (params.InvoiceVoidInvoiceParams, invoices.void),
    ("payment_methods", "attach"): (params.PaymentMethodAttachParams, payment_methods.attach),
    ("payment_methods", "detach"): (params.PaymentMethodDetachParams, payment_methods.detach),
    ("refunds", "cancel"): (params.RefundCancelParams, _cancel_refund),
    ("subscriptions", "update"): (params.SubscriptionUpdateParams, subscriptions.update),
    ("subscriptions", "resume"): (params.SubscriptionResumeParams, subscriptions.resume),
    ("subscriptions", "delete"): (params.SubscriptionCancelParams, subscriptions.cancel),
    ("webhook_endpoints", "update"): (params.WebhookEndpointUpdateParams, webhook_endpoints.update),
}
DELETIONS: dict[str, tuple[Any, Callable[[Account, JsonObject], JsonObject]]] = {
    "customers": (params.CustomerDeleteParams, customers.delete),
    "webhook_endpoints": (params.WebhookEndpointDeleteParams, webhook_endpoints.delete),
    "invoices": (params.InvoiceDeleteParams, invoices.delete),
    "invoiceitems": (params.InvoiceItemDeleteParams, invoice_items.delete),
}
# Actions whose name is no part of their path, and the method that tells them.
UNNAMED_ACTIONS = {"update": "POST", "delete": "DELETE"}

blueprint = Blueprint("stripe", __name__, url_prefix="/v1")


@blueprint.before_request
def begin() -> Response | None:
    """Find the account, and the answer that was given before to the same idempotency key."""
    g.request_id = random_id("req_", 14)
    world = current_world()
    g.account = world.accounts.of_key(_api_key())
    key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
    g.account.caller = Caller(g.request_id, key, request.host_url.rstrip("/"))
    note(account=g.account.id)
    if key is None:
        return None
    world.keys_in_use.check(request)
    kept = g.account.kept_answers.replay(key, request, now=world.clock.now())
    return None if kept is None else _replay(kept)


@blueprint.after_request
def finish(response: Response) -> Response:
    """Keep what was executed for its idempotency key, and put Stripe's headers on."""
    if "executed" in g and g.account.caller.idempotency_key is not None:
        _keep(response)
    if "account" in g:
        g.account.caller = Caller(base_url=g.account.caller.base_url)
    response.headers["Date"] = http_date(current_world().clock.now())
    response.headers["Request-Id"] = g.request_id
    response.headers["Stripe-Version"] = stripe.api_version
    if response.status_code == 402:
        response.headers["Stripe-Should-Retry"] = "false"
    return response


@blueprint.errorhandler(StripeError)
def refuse(refusal: StripeError) -> Response:
    done = refusal.error.get("payment_intent") or g.get("found")
    if refusal.status == 402 and done is not None:
        _note_execution(done)
    elif refusal.executed:
        # Kept for the idempotency key, though nothing has come of it.
        g.executed = None
    response = _json({"error": refusal.error}, refusal.status)
    if refusal.status == 409:
        response.headers["Stripe-Should-Retry"] = "true"
    return response


def create(path: str) -> Response:
    shape, execute = CREATIONS[path]
    given, expand = _parameters(shape)
    g.effect = f"{NAMES[path]}.create"
    made = execute(g.account, given)
    _note_execution(made)
    return _json(expansion.expand(g.account, made, expand))


def act(path: str, action: str, identifier: str) -> Response:
    shape, execute = ACTIONS[path, action]
    given, expand = _parameters(shape)
    g.found = found = _unless_deleted(BY_PATH[path], identifier)
    g.effect = f"{BY_PATH[path].name}.{action}"
    execute(g.account, found, given)
    _note_execution(found)
    return _json(expansion.expand(g.account, found, expand))


def delete(path: str, identifier: str) -> Response:
    shape, execute = DELETIONS[path]
    _parameters(shape)
    g.effect = f"{BY_PATH[path].name}.delete"
    deleted = execute(g.account, _unless_deleted(BY_PATH[path], identifier))
    current_world().outbox.cancel(identifier)
    _note_execution(deleted)
    return _json(deleted)


def retrieve(path: str, identifier: str) -> Response:
    _, expand = _parameters(BY_PATH[path].retrieve_shape)
    return _json(expansion.expand(g.account, _found(BY_PATH[path], identifier), expand))


def list_all(path: str) -> Response:
    resource = BY_PATH[path]
    given, expand = _parameters(resource.list_shape)
    objects = g.account.newest_first(resource.name)
    for listed in objects:
        _refresh(listed)
    listable = [listed for listed in objects if _is_current(listed) and "deleted" not in listed]
    answer = lists.page(listable, _filters(resource, given), url=f"/v1/{path}")
    return _json(expansion.expand(g.account, answer, expand))


@blueprint.get("/account")
def show_account() -> Response:
    """Show the account of the key. https://docs.stripe.com/api/accounts/retrieve"""
    return _json({"id": g.account.id, "object": "account", "type": "standard", "country": "US"})


@blueprint.get("/checkout/sessions/<identifier>/line_items")
def list_line_items(identifier: str) -> Response:
    given, expand = _parameters(params.checkout.SessionListLineItemsParams)
    session = _found(BY_PATH["checkout/sessions"], identifier)
    items = g.account.checkouts[session["id"]]["line_items"]
    answer = lists.page(items, given, url=request.path)
    return _json(expansion.expand(g.account, answer, expand))


@blueprint.get("/customers/<identifier>/payment_methods")
def list_payment_methods(identifier: str) -> Response:
    given, expand = _parameters(params.CustomerListPaymentMethodsParams)
    customer = _unless_deleted(BY_PATH["customers"], identifier)
    methods = list(payment_methods.of_customer(g.account, customer["id"]))
    answer = lists.page(methods, given, url=request.path)
    return _json(expansion.expand(g.account, answer, expand))


@blueprint.route("/<path:rest>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def unknown(rest: str) -> Response:
    message = (
        f"Unrecognized request URL ({request.method}: {request.path}). Please see https://stripe.com/docs or we can "
        "help at https://support.stripe.com/."
    )
    raise StripeError(404, "invalid_request_error", message)


def _add_routes() -> None:
    for path in BY_PATH:
        blueprint.add_url_rule(f"/{path}", f"list {path}", partial(list_all, path))
        blueprint.add_url_rule(f"/{path}/<identifier>", f"retrieve {path}", partial(retrieve, path))
    for path in CREATIONS:
        blueprint.add_url_rule(f"/{path}", f"create {path}", partial(create, path), methods=["POST"])
    for path, action in ACTIONS:
        rule = f"/{path}/<identifier>" + ("" if action in UNNAMED_ACTIONS else f"/{action}")
        method = UNNAMED_ACTIONS.get(action, "POST")
        blueprint.add_url_rule(rule, f"{action} {path}", partial(act, path, action), methods=[method])
    for path in DELETIONS:
        rule = f"/{path}/<identifier>"
        blueprint.add_url_rule(rule, f"delete {path}", partial(delete, path), methods=["DELETE"])


_add_routes()


def _api_key() -> str:
    given = request.authorization
    if given is None:
        raise unauthorized("")
    return given.token or given.get("username") or ""


def _parameters(shape: Any) -> tuple[JsonObject, list[str]]:
    pairs = request.form if request.method == "POST" else request.args
    given = parameters.check(forms.decode(pairs.items(multi=True)), shape)
    return given, given.pop("expand", [])


def _found(resource: Resource, identifier: str) -> JsonObject:
    found: JsonObject | None = g.account.get(resource.name, identifier)
    if found is None and resource.name == "payment_method":
        found = payment_methods.published(g.account, identifier)
    if found is None or not _is_current(found):
        raise no_such(resource.name, identifier, param=resource.param)
    _refresh(found)
    return found


def _unless_deleted(resource: Resource, identifier: str) -> JsonObject:
    found = _found(resource, identifier)
    if "deleted" in found:
        raise no_such(resource.name, identifier, param=resource.param)
    return found


def _is_current(found: JsonObject) -> bool:
    """Events older than 30 days are gone."""
    return found["object"] != "event" or bool(found["created"] > g.account.clock.now() - EVENTS_LISTABLE_SECONDS)


def _refresh(found: JsonObject) -> None:
    """Let the object show what only the passing of time has changed."""
    if found["object"] == SESSIONS:
        checkout_sessions.expire_if_due(g.account, found)
    elif found["object"] == "payment_intent":
        payment_intents.expire_if_due(g.account, found)
    elif found["object"] == "coupon":
        catalog.refresh_coupon(g.account, found)


def _filters(resource: Resource, given: JsonObject) -> JsonObject:
    """Rename the parameters that aren't called what they filter by."""
    filters = dict(given)
    if resource.name == "event":
        if len(filters.get("types", [])) > MAX_EVENT_TYPES:
            raise invalid(f"You can filter by at most {MAX_EVENT_TYPES} types.", param="types")
        _rename(filters, "types", "type")
        if "delivery_success" in filters:
            filters["pending_webhooks"] = {"lte" if filters.pop("delivery_success") else "gt": 0}
    elif resource.name == "invoice" and "subscription" in filters:
        filters["parent"] = {"subscription_details": {"subscription": filters.pop("subscription")}}
    elif resource.name == "invoiceitem":
        _rename(filters, "created", "date")
        if filters.pop("pending", False):
            filters["invoice"] = None
    elif resource.name == "payment_method" and "customer" in filters:
        g.account.named("customer", filters["customer"], param="customer")
    elif resource.name == "subscription":
        status = filters.pop("status", None)
        if status != "all":
            filters["status"] = status or sorted(UNCANCELED)
    _rename(filters, "ids", "id")
    _rename(filters, "lookup_keys", "lookup_key")
    return filters


def _rename(filters: JsonObject, name: str, field: str) -> None:
    if name in filters:
        filters[field] = filters.pop(name)


def _note_execution(executed: JsonObject) -> None:
    g.executed = executed["id"]
    note(effect=g.effect, object_id=executed["id"])


def _keep(response: Response) -> None:
    kept = idempotency.answer_to_keep(request, response)
    g.account.kept_answers.keep(
        g.account.caller.idempotency_key,
        idempotency.KeptAnswer(
            method=request.method,
            path=request.path,
            parameters=idempotency.parameters_of(request),
            status=kept.status_code,
            body=kept.get_data(as_text=True),
            request_id=g.request_id,
            object_id=g.executed,
            at=g.account.clock.now(),
        ),
    )


def _replay(kept: idempotency.KeptAnswer) -> Response:
    note(replayed=True, object_id=kept.object_id)
    response = Response(kept.body, kept.status, mimetype="application/json")
    response.headers["Idempotent-Replayed"] = "true"
    response.headers["Original-Request"] = kept.request_id
    if kept.status >= 500:
        response.headers["Stripe-Should-Retry"] = "false"
    return response


def _json(answer: JsonObject, status: int = 200) -> Response:
    return Response(orjson.dumps(answer), status, mimetype="application/json")
