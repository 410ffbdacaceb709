"""What all schemas share: camelCase on the wire, strict types, no NUL, and null meaning absent."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, cached_property
from typing import Any, ClassVar
from urllib.parse import urlsplit

from marshmallow import EXCLUDE, Schema, ValidationError, missing, post_load, pre_load
from marshmallow.fields import AwareDateTime, Boolean, Field, List, Nested, String
from marshmallow.validate import Length, Validator

MAX_ID_LENGTH = 255
MAX_URL_LENGTH = 2048
# Of a request's fields that are not known, as far as they are repeated.
MAX_IGNORED = 20
MAX_IGNORED_LENGTH = 100
# More than any of ISO 8601's ways to write a time.
MAX_TIME_LENGTH = 64

_ISO_8601 = re.compile(r"\d{4}-?\d\d-?\d\d([T ]\d\d(:?\d\d){0,2}([.,]\d+)?(Z|[+-]\d\d(:?\d\d)?)?)?", re.ASCII)


@cache
def camel_case(name: str) -> str:
    """`amount_in_cents` becomes `amountInCents`; a name without underscores stays as it is."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


class CamelCaseSchema(Schema):
    """Names are snake_case in Python and camelCase on the wire. Fields that we don't know are ignored."""

    # What the OpenAPI document says of the schema as a whole: an example, rules for several fields together.
    document: ClassVar[Mapping[str, Any]] = {}
    # Its fields are fields of the object that it is nested in.
    is_flat: ClassVar[bool] = False

    class Meta:
        unknown = EXCLUDE

    def on_bind_field(self, field_name: str, field_obj: Field[Any]) -> None:
        field_obj.data_key = camel_case(field_obj.data_key or field_name)

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """What is answered, by its names on the wire.

        The one fast path: values are already what JSON holds, or what our JSON writes (times, UUIDs), so they are taken
        as they are, where marshmallow would look at each. A page of a hundred payments costs a third of the CPU.

        :param many: not used here
        """
        return self._writer.write(obj)

    @cached_property
    def _writer(self) -> "_Writer":
        return _Writer(self)


class _Writer:
    """The fields of a schema as they are written: their names here and on the wire, and what is nested in them."""

    def __init__(self, schema: "CamelCaseSchema") -> None:
        self.is_flat = schema.is_flat
        fields = [(field.attribute or name, str(field.data_key), field) for name, field in schema.fields.items()]
        self._constants = {key: field.dump_default for _, key, field in fields if field.dump_default is not missing}
        plain = [(name, key, field.required) for name, key, field in fields if _nested(field) is None]
        self._always = [(name, key) for name, key, required in plain if required and key not in self._constants]
        self._sometimes = [(name, key) for name, key, required in plain if not required or key in self._constants]
        self._nested = [
            (name, key, nested._writer, isinstance(field, List))
            for name, key, field in fields
            if (nested := _nested(field)) is not None
        ]

    def write(self, obj: Any) -> dict[str, Any]:
        values = obj if isinstance(obj, Mapping) else vars(obj)
        written = {key: values[name] for name, key in self._always}
        written |= self._constants
        for name, key in self._sometimes:
            if name in values:
                written[key] = values[name]
        for name, key, nested, is_list in self._nested:
            inner = values if nested.is_flat else values.get(name)
            if inner is not None:
                written[key] = [nested.write(each) for each in inner] if is_list else nested.write(inner)
        return written


def _nested(field: Field[Any]) -> CamelCaseSchema | None:
    inner = field.inner if isinstance(field, List) else field
    return inner.schema if isinstance(inner, Nested) and isinstance(inner.schema, CamelCaseSchema) else None


class RequestSchema(CamelCaseSchema):
    """A request body or query. An optional field that is null, or an empty string, is the same as an absent one."""

    # A query, in which nothing can be null, says no.
    takes_null: ClassVar[bool] = True
    # The fields that a header of the caller's stands in for, and by which other names these may be sent.
    identity: ClassVar[Sequence[str]] = ()
    other_names: ClassVar[Mapping[str, Sequence[str]]] = {}

    def on_bind_field(self, field_name: str, field_obj: Field[Any]) -> None:
        super().on_bind_field(field_name, field_obj)
        if not field_obj.required:
            field_obj.allow_none = self.takes_null

    def ignored_names(self, data: Any, where: str = "") -> Iterator[str]:
        """The fields of a valid body that are not known, as `currencyy` or `lineItems.0.coupon`; null is no field."""
        if not isinstance(data, Mapping) or self.unknown != EXCLUDE:
            return
        for name, value in data.items():
            if value is None:
                continue
            field = self._by_name_on_the_wire.get(name)
            nested = field and _nested(field)
            if field is None:
                yield f"{where}{name}"
            elif isinstance(nested, RequestSchema):
                yield from nested._ignored_in(value, f"{where}{name}.")

    def _ignored_in(self, value: Any, where: str) -> Iterator[str]:
        if isinstance(value, list):
            for number, each in enumerate(value):
                yield from self.ignored_names(each, f"{where}{number}.")
        else:
            yield from self.ignored_names(value, where)

    @cached_property
    def _by_name_on_the_wire(self) -> Mapping[str, Field[Any]]:
        return {str(field.data_key): field for field in self.fields.values()}

    @pre_load
    def _drop_nulls(self, data: Any, **_: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {key: value for key, value in data.items() if value is not None}

    @post_load
    def _drop_empty_strings(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {key: value for key, value in data.items() if value != ""}


class CreatedSchema(CamelCaseSchema):
    """What every answer to a create may hold. Whoever writes the answer knows what of the request was ignored."""

    ignored_fields = List(
        String(validate=Length(max=MAX_IGNORED_LENGTH)),
        validate=Length(min=1, max=MAX_IGNORED),
        metadata={
            "description": "The fields of this request that are not known, and had no effect; left out where there are "
            f"none. Of more than {MAX_IGNORED}, the first.",
            "example": ["curency", "lineItems.0.discount"],
        },
    )


class WholeMatch(Validator):
    """A pattern for the whole string; with a regular expression's `$` alone, a line end after it would pass."""

    def __init__(self, pattern: str, *, error: str) -> None:
        self.regex = re.compile(pattern)
        self.sentence = error

    def __call__(self, value: str) -> str:
        if not self.regex.fullmatch(value):
            raise ValidationError(self.sentence)
        return value


# PostgreSQL can't store a NUL, and no caller means one.
NO_NUL = WholeMatch(r"^[^\x00]*$", error="Must not contain a NUL character.")


# What is looked up by path: a control character can't be written there.
NO_CONTROL = WholeMatch(r"^[^\x00-\x1f\x7f]*$", error="Must not contain a control character.")


class Bounded(Field[Any]):
    """A field whose value's length is checked before anything in it is looked at.

    marshmallow's own order is to read every item of a list before it counts them, and to run every validator whatever
    the one before it said: a body of one mebibyte would be work for seconds.
    """

    # Of which type a value is that has a length; one of another type is refused as what it is.
    sized: ClassVar[type]

    def __init__(self, *, length: Validator, validate: Sequence[Validator] = (), **kwargs: Any) -> None:
        self.length = length
        super().__init__(validate=[length, *validate], **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if isinstance(value, self.sized):
            self.length(value)
        return super()._deserialize(value, attr, data, **kwargs)


class Text(Bounded, String):
    """A bounded string. A pattern of its own has to leave out the NUL itself."""

    sized = str

    def __init__(self, *, max_length: int, min_length: int = 0, pattern: WholeMatch = NO_NUL, **kwargs: Any) -> None:
        super().__init__(length=Length(min=min_length or None, max=max_length), validate=[pattern], **kwargs)


class BoundedList(Bounded, List[Any]):
    """A list of a bounded number of items."""

    sized = list

    def __init__(self, inner: Field[Any], *, max_items: int, min_items: int = 0, **kwargs: Any) -> None:
        length = Length(min=min_items or None, max=max_items)
        super().__init__(cls_or_instance=inner, length=length, **kwargs)


class Flag(Boolean):
    """True or false, and nothing that some take for it."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Time(AwareDateTime):
    """A time by ISO 8601, which is read as one in UTC. Without an offset it is one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(default_timezone=UTC, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        # Python's parser takes any character at all between the date and the time, an offset's sign included.
        is_written = isinstance(value, str) and len(value) <= MAX_TIME_LENGTH and _ISO_8601.fullmatch(value)
        if not is_written:
            raise self.make_error("invalid", input=value, obj_type=self.OBJ_TYPE)
        read = super()._deserialize(value, attr, data, **kwargs)
        try:
            # PostgreSQL knows no offset of 16 hours and more.
            return read.astimezone(UTC)
        except OverflowError:
            # In UTC it is in no year from 1 to 9999.
            return (datetime.min if read.year == 1 else datetime.max).replace(tzinfo=UTC)


class AppId(Text):
    """The app that a request is for. It ends up in paths, so one of only dots is refused."""

    def __init__(self, *, metadata: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        described = {"description": "The app that it is for; its Stripe key is used.", "example": "shop"}
        super().__init__(
            min_length=1,
            max_length=200,
            pattern=WholeMatch(
                r"^\.*[A-Za-z0-9_:-][A-Za-z0-9._:-]*$",
                error="Must be made of letters, digits and . _ : - and not only of dots.",
            ),
            metadata={**described, **(metadata or {})},
            **kwargs,
        )


class AppQuerySchema(RequestSchema):
    """Which app a question is about."""

    takes_null = False

    app_id = AppId(required=True)


class OptionalAppQuerySchema(RequestSchema):
    """Of which app something has to be in order to be shown."""

    takes_null = False

    app_id = AppId(metadata={"description": "Shows nothing of another app."})


class HttpUrl(WholeMatch):
    """An absolute URL without user info. Besides matching the pattern, its port and its address have to be some."""

    def __init__(self) -> None:
        super().__init__(
            r"^[Hh][Tt][Tt][Pp][Ss]?://(\[[0-9A-Fa-f:.]+\]|[^\s\x00-\x1f\x7f\\/?#@:\[\]]+)(:[0-9]*)?"
            r"([/?#][^\s\x00-\x1f\x7f\\]*)?$",
            error="Must be an absolute http or https URL without user info.",
        )

    def __call__(self, value: str) -> str:
        try:
            usable = urlsplit(super().__call__(value)).port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValidationError(self.sentence)
        return value


class Url(Text):
    """An absolute http or https URL without user info. `{CHECKOUT_SESSION_ID}` may stand in it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=MAX_URL_LENGTH, pattern=HttpUrl(), **kwargs)
