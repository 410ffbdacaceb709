"""Who a request is from and for, as its key and its headers say: put where its body or its query leaves that out.

It is done before anything is validated, so what holds for a field holds for its header; and for every route alike, so
no route can forget that a key is one app's.
"""

from collections.abc import Mapping
from typing import Any

from flask import g, request
from marshmallow import Schema

from app.errors import IdentityConflict, KeyOfAnotherApp
from app.schemas.base import RequestSchema, camel_case

APP_ID = "appId"
HEADERS = {
    "org_id": "X-Org-Id",
    "run_id": "X-Run-Id",
    "brand_id": "X-Brand-Id",
    "campaign_id": "X-Campaign-Id",
}
# Its header may hold several, by commas: the first is meant.
LISTED = "brand_id"


def identity_of(sent: Mapping[str, Any], schema: Schema) -> dict[str, str]:
    """What the request's key and headers add to what was sent in its body or its query.

    :raises KeyOfAnotherApp: when the request names another app than its key's.
    :raises IdentityConflict: when a header contradicts what was sent, or the path.
    """
    if not isinstance(schema, RequestSchema):
        return {}
    return _app_of_key(sent, schema) | _told_by_headers(sent, schema)


def _app_of_key(sent: Mapping[str, Any], schema: RequestSchema) -> dict[str, str]:
    app_id = g.caller.app_id
    if app_id is None or "app_id" not in schema.fields:
        return {}
    named = sent.get(APP_ID)
    if named is None:
        return {APP_ID: app_id}
    # What can't be an app's id is for the schema to refuse.
    if isinstance(named, str) and named not in ("", app_id):
        raise KeyOfAnotherApp
    return {}


def _told_by_headers(sent: Mapping[str, Any], schema: RequestSchema) -> dict[str, str]:
    added = {}
    for name in schema.identity:
        told = _header(name)
        if told is None:
            continue
        said = _said(name, sent, schema)
        if said is None:
            added[camel_case(name)] = told
        elif said != told:
            raise IdentityConflict(HEADERS[name], camel_case(name))
    return added


def _header(name: str) -> str | None:
    """What a header says, if anything."""
    # WSGI hands headers over as Latin-1.
    sent = request.headers.get(HEADERS[name], "").encode("latin-1").decode(errors="replace")
    return (sent.partition(",")[0].strip() if name == LISTED else sent) or None


def _said(name: str, sent: Mapping[str, Any], schema: RequestSchema) -> Any:
    """What the path, the body or the query says, by whichever name."""
    in_path = (request.view_args or {}).get(name)
    names = (name, *schema.other_names.get(name, ()))
    return next((said for each in names if (said := sent.get(camel_case(each))) not in (None, "")), in_path)
