"""What all schemas share: camelCase on the wire, strict types, no NUL, and null meaning absent."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from marshmallow import EXCLUDE, Schema, ValidationError, post_load, pre_load
from marshmallow.fields import Field, String
from marshmallow.validate import Length, Validator

MAX_ID_LENGTH = 255
MAX_URL_LENGTH = 2048


class CamelCaseSchema(Schema):
    """Names are snake_case in Python and camelCase on the wire. Fields that we don't know are ignored."""

    class Meta:
        unknown = EXCLUDE

    def on_bind_field(self, field_name: str, field_obj: Field[Any]) -> None:
        field_obj.data_key = camel_case(field_obj.data_key or field_name)


class RequestSchema(CamelCaseSchema):
    """A request body or query. An optional field that is null, or an empty string, is the same as an absent one."""

    def on_bind_field(self, field_name: str, field_obj: Field[Any]) -> None:
        super().on_bind_field(field_name, field_obj)
        if not field_obj.required:
            field_obj.allow_none = True

    @pre_load
    def _drop_nulls(self, data: Any, **_: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {key: value for key, value in data.items() if value is not None}

    @post_load
    def _drop_empty_strings(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {key: value for key, value in data.items() if value != ""}


def camel_case(name: str) -> str:
    """`amount_in_cents` becomes `amountInCents`; a name without underscores stays as it is."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def refuse_nul(text: str) -> None:
    """PostgreSQL can't store a NUL, and no caller means one.

    :raises ValidationError: when the text holds one.
    """
    if "\x00" in text:
        raise ValidationError("Must not contain a NUL character.")


class WholeMatch(Validator):
    """A pattern for the whole string; with a regular expression's `$` alone, a line end after it would pass."""

    def __init__(self, pattern: str, *, error: str) -> None:
        self.regex = re.compile(pattern)
        self.sentence = error

    def __call__(self, value: str) -> str:
        if not self.regex.fullmatch(value):
            raise ValidationError(self.sentence)
        return value


class Text(String):
    """A bounded string without NUL."""

    def __init__(self, *, max_length: int, min_length: int = 0, **kwargs: Any) -> None:
        validate = [Length(min=min_length or None, max=max_length), refuse_nul, *kwargs.pop("validate", ())]
        super().__init__(validate=validate, **kwargs)


class AppId(Text):
    """The app that a request is for. It ends up in paths, so one of only dots is refused."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            min_length=1,
            max_length=200,
            validate=[
                WholeMatch(
                    r"^[A-Za-z0-9._:-]*[A-Za-z0-9_:-][A-Za-z0-9._:-]*$",
                    error="Must be made of letters, digits and . _ : - and not only of dots.",
                )
            ],
            metadata={"description": "The app that the payment is for; its Stripe key is used.", "example": "shop"},
            **kwargs,
        )


class Url(Text):
    """An absolute http or https URL without user info. `{CHECKOUT_SESSION_ID}` may stand in it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=MAX_URL_LENGTH, validate=[_require_http_url], **kwargs)


_NOT_IN_URL = re.compile(r"[\s\x00-\x1f\x7f\\]")


def _require_http_url(text: str) -> None:
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in url.netloc or _NOT_IN_URL.search(text):
        raise ValidationError("Must be an absolute http or https URL without user info.")
