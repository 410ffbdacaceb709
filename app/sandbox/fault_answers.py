"""What a client gets instead of the true answer, when a fault replaces it."""

import orjson
from werkzeug.wrappers import Response

from app.sandbox.faults import Fault
from app.sandbox.stripe.account import random_id
from app.sandbox.stripe.errors import LOCK_TIMEOUT, envelope_for

# Long enough that a client which waits for the whole body waits in vain.
FILLER = {"object": "filler", "text": "." * 1000}
ELSEWHERE = "/_sandbox/elsewhere"
HTML = "<!doctype html><html><head><title>Bad gateway</title></head><body><h1>Bad gateway</h1></body></html>"


def answer_of(fault: Fault) -> Response:
    """The answer of the faults status, json, locked, html and redirect, and what the others send if not the truth."""
    if fault.kind == "html":
        response = Response(fault.body or HTML, fault.status, mimetype="text/html")
    elif fault.kind == "redirect":
        response = Response(status=fault.status, headers={"Location": ELSEWHERE})
    else:
        body = _default_body(fault) if fault.body is None else fault.body
        response = Response(orjson.dumps(body), fault.status, mimetype="application/json")
    if fault.service == "stripe":
        response.headers["Request-Id"] = random_id("req_", 14)
    response.headers.update(fault.headers)
    return response


def _default_body(fault: Fault) -> object:
    if fault.kind == "locked":
        return {"error": LOCK_TIMEOUT}
    if fault.kind != "status":
        return FILLER
    if fault.service == "stripe":
        return envelope_for(fault.status)
    return {"error": f"{fault.service} answers {fault.status}"}
