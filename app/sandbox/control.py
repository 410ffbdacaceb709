"""The control API, with which tests steer the sandbox."""

from collections import Counter
from typing import Any

import orjson
from flask import Blueprint, Response, request
from werkzeug.exceptions import HTTPException

from app.sandbox.actions import ACTIONS, KINDS, perform
from app.sandbox.faults import Fault
from app.sandbox.json_object import JsonObject
from app.sandbox.key_ring import PROVIDERS
from app.sandbox.stripe import checkout_sessions, payment_intents
from app.sandbox.stripe.account import REFUND_STATUSES, Account
from app.sandbox.stripe.errors import LIVE_KEYS, StripeError
from app.sandbox.webhooks import MODES, ORDERS, Endpoint
from app.sandbox.world import current_world

blueprint = Blueprint("control", __name__, url_prefix="/_sandbox")


class ControlError(Exception):
    """A request to the control API that makes no sense."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


@blueprint.errorhandler(ControlError)
def refuse(error: ControlError) -> Response:
    return _json({"error": str(error)}, error.status)


@blueprint.errorhandler(StripeError)
def refuse_as_stripe(error: StripeError) -> Response:
    return _json({"error": error.error["message"]}, error.status)


@blueprint.errorhandler(HTTPException)
def refuse_as_http(error: HTTPException) -> Response:
    return _json({"error": error.description}, error.code or 500)


@blueprint.post("/reset")
def reset() -> Response:
    current_world().reset()
    return _json({"reset": True})


@blueprint.get("/ledger")
def ledger() -> Response:
    """The requests that came, and how many invoices they have left in each state."""
    world = current_world()
    entries = world.ledger.entries(
        service=request.args.get("service"), since=request.args.get("since", default=0, type=int)
    )
    accounts = world.accounts.by_id.values()
    invoices = Counter(each["status"] for account in accounts for each in account.newest_first("invoice"))
    return _json({"entries": entries, "invoices": invoices})


@blueprint.get("/state")
def state() -> Response:
    world = current_world()
    accounts = {
        account.id: {"apps": world.keys.apps_of(account.id), "objects": _objects(account)}
        for account in world.accounts.by_id.values()
    }
    return _json({"accounts": accounts, "runs": world.runs.all(), "clock": world.clock.iso()})


def _objects(account: Account) -> JsonObject:
    return {resource: account.newest_first(resource) for resource in account.objects}


@blueprint.post("/faults")
def add_fault() -> Response:
    try:
        fault = Fault.from_json(_body())
    except (TypeError, ValueError) as error:
        raise ControlError(str(error)) from error
    return _json({"id": current_world().faults.add(fault)}, 201)


@blueprint.get("/faults")
def list_faults() -> Response:
    return _json({"faults": current_world().faults.to_json()})


@blueprint.delete("/faults")
def clear_faults() -> Response:
    current_world().faults.clear()
    return _json({"faults": []})


@blueprint.get("/elsewhere")
def elsewhere() -> Response:
    """Where a redirect leads: a client that follows it gets a success that means nothing."""
    return _json({})


@blueprint.get("/webhooks")
def webhooks() -> Response:
    return _json(current_world().outbox.summary())


@blueprint.post("/webhooks")
def configure_webhooks() -> Response:
    given, outbox = _body(), current_world().outbox
    mode = given.get("mode", outbox.mode)
    if mode not in MODES:
        raise ControlError(f"The mode is one of {', '.join(MODES)}.")
    endpoints = [_endpoint(endpoint) for endpoint in _list(given, "endpoints")]
    outbox.mode = mode
    if "endpoints" in given:
        outbox.endpoints = endpoints
    return _json(outbox.summary())


def _endpoint(given: Any) -> Endpoint:
    """Read an endpoint; its account may be named by an id or by a key."""
    if not isinstance(given, dict) or not {"url", "secret"} <= given.keys() <= {"url", "secret", "account"}:
        raise ControlError("An endpoint has a url, a secret and, optionally, an account.")
    account = given.get("account")
    if isinstance(account, str) and account.startswith(("sk_", "rk_")):
        account = current_world().accounts.of_key(account).id
    return Endpoint(given["url"], given["secret"], account)


@blueprint.post("/webhooks/release")
def release_webhooks() -> Response:
    given = _body()
    order = given.get("order")
    if order is not None and order not in ORDERS:
        raise ControlError(f"The order is one of {', '.join(ORDERS)}.")
    copies = _integer(given, "copies", 1)
    released = current_world().outbox.release(order=order, seed=given.get("seed"), copies=copies)
    return _json({"released": released})


@blueprint.post("/events/<identifier>/deliver")
def deliver_event(identifier: str) -> Response:
    world = current_world()
    found = world.accounts.find("event", identifier)
    if found is None:
        raise ControlError(f"There is no event {identifier}.", 404)
    world.outbox.deliver(*found)
    return _json(found[1])


@blueprint.post(f"/<any({KINDS}):kind>/<identifier>/<action>")
def act(kind: str, identifier: str, action: str) -> Response:
    if action not in ACTIONS[kind]:
        raise ControlError(f"{kind} know {', '.join(ACTIONS[kind])}, not {action}.", 404)
    given = _body()
    if "amount" in given:
        _integer(given, "amount", 0)
    base_url = request.host_url.rstrip("/")
    return _json(perform(current_world().accounts, kind, identifier, action, given, base_url=base_url))


@blueprint.post("/clock")
def advance_clock() -> Response:
    world = current_world()
    world.clock.advance(_integer(_body(), "advance", 0))
    for account in world.accounts.by_id.values():
        for session in list(account.where("checkout.session", status="open")):
            checkout_sessions.expire_if_due(account, session)
        for intent in list(account.where("payment_intent", status="requires_capture")):
            payment_intents.expire_if_due(account, intent)
    world.outbox.wake()
    return _json({"now": world.clock.iso()})


@blueprint.post("/keys")
def set_key() -> Response:
    given = _body()
    provider, app_id, key = given.get("provider", "stripe"), given.get("appId"), given.get("key")
    if provider not in PROVIDERS or not isinstance(app_id, str) or not isinstance(key, str | None):
        raise ControlError(f"A key has an appId, a key or null, and a provider: {' or '.join(PROVIDERS)}.")
    if key is not None and key.startswith(LIVE_KEYS):
        raise ControlError("A live key must never be given to a stand-in: use one of test mode.")
    keys = current_world().keys
    if key is not None and isinstance(other := given.get("accountOf"), str):
        keys.share_account(other, key)
    keys.set(provider, app_id, key)
    return _json({"appId": app_id, "provider": provider})


@blueprint.post("/keys/revoke")
def revoke_key() -> Response:
    key = _body().get("key")
    if not isinstance(key, str):
        raise ControlError("Name the key to revoke.")
    current_world().accounts.revoke(key)
    return _json({"revoked": True})


@blueprint.post("/accounts")
def configure_account() -> Response:
    """Say from what an account's refunds are paid, how they begin, and how its events show objects.

    The account is named by its Stripe key.
    """
    given = _body()
    key, status = given.get("key"), given.get("refundStatus", "succeeded")
    if not isinstance(key, str) or status not in REFUND_STATUSES:
        raise ControlError(f"Name the account by its key; a refund begins as {', '.join(REFUND_STATUSES)}.")
    account = current_world().accounts.of_key(key)
    account.available = None if given.get("available") is None else _integer(given, "available", 0)
    account.refund_status = status
    account.tells_old_shapes = bool(given.get("oldShapes"))
    return _json({"account": account.id, "available": account.available, "refundStatus": account.refund_status})


@blueprint.post("/runs")
def configure_runs() -> Response:
    honour = _body().get("honourIdempotencyKey")
    if not isinstance(honour, bool):
        raise ControlError("honourIdempotencyKey is true or false.")
    current_world().runs.honour_idempotency_key = honour
    return _json({"honourIdempotencyKey": honour})


def _body() -> JsonObject:
    """The JSON object that was sent; nothing at all is an empty one."""
    try:
        body = orjson.loads(request.get_data() or b"{}")
    except orjson.JSONDecodeError as error:
        raise ControlError("The body must be a JSON object.") from error
    if not isinstance(body, dict):
        raise ControlError("The body must be a JSON object.")
    return body


def _integer(given: JsonObject, name: str, default: int) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ControlError(f"{name} must be a whole number.")
    return value


def _list(given: JsonObject, name: str) -> list[Any]:
    value = given.get(name, [])
    if not isinstance(value, list):
        raise ControlError(f"{name} must be a list.")
    return value


def _json(answer: JsonObject, status: int = 200) -> Response:
    return Response(orjson.dumps(answer), status, mimetype="application/json")
