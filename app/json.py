"""Flask's JSON by orjson: several times as fast, with times in ISO 8601 and our dataclasses as the wire names them."""

import dataclasses
from typing import Any

import orjson
from flask import Response
from flask.json.provider import JSONProvider

from app.wire import camel_case


class OrjsonProvider(JSONProvider):
    """What `jsonify` and `request.json` use."""

    def dumps(self, obj: Any, **_: Any) -> str:
        return _dump(obj).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        return orjson.loads(s)

    def response(self, *args: Any, **kwargs: Any) -> Response:
        return Response(_dump(self._prepare_response_obj(args, kwargs)), content_type="application/json")


def _dump(value: Any) -> bytes:
    return orjson.dumps(value, _with_wire_names, orjson.OPT_PASSTHROUGH_DATACLASS)


def _with_wire_names(value: Any) -> dict[str, Any]:
    """A dataclass's fields by their names on the wire.

    :raises TypeError: when it is no dataclass.
    """
    if not dataclasses.is_dataclass(value):
        raise TypeError
    return {camel_case(name): inner for name, inner in vars(value).items()}
