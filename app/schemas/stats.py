"""Statistics: what they are asked for, and what they say."""

from collections.abc import Mapping
from typing import Any, ClassVar

from marshmallow import ValidationError, post_load, pre_load, validates_schema
from marshmallow.fields import AwareDateTime, Integer, List, Nested, String
from marshmallow.validate import OneOf

from app.errors import UnknownFilter
from app.schemas.base import BoundedList, CamelCaseSchema, OptionalAppQuerySchema, RequestSchema, Text, Time

MAX_RUNS = 1_000
COUNT = {"example": 1}


class _Filter(Text):
    """A text to look for. An empty one would count what has none, or everything: nobody means either."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(min_length=1, max_length=200, **kwargs)


class NoFiltersSchema(RequestSchema):
    """No filter at all, as in the query of a request whose filters are in its body: one that is dropped misleads."""

    @pre_load
    def _drop_nulls(self, data: Any, **options: Any) -> Any:
        # First of all: a filter that isn't known is refused also where it is null.
        known = {field.data_key for field in self.fields.values()}
        if isinstance(data, Mapping) and (unknown := [name for name in data if name not in known]):
            raise UnknownFilter(unknown)
        return super()._drop_nulls(data, **options)


class StatsFilterSchema(NoFiltersSchema):
    """Which payments to count: those that match all that is given; and by which periods to sum besides."""

    document: ClassVar = {"example": {"appId": "shop"}, "additionalProperties": False}
    identity = ("org_id",)
    other_names: ClassVar = {"org_id": ("clerk_org_id",)}

    run_ids = BoundedList(
        _Filter(),
        max_items=MAX_RUNS,
        metadata={"description": "Payments whose own run, or the caller's, is one of these; none of them: none."},
    )
    org_id = _Filter()
    clerk_org_id = _Filter(metadata={"description": "Another name for orgId, which wins."})
    brand_id = _Filter()
    app_id = _Filter()
    campaign_id = _Filter()
    since = Time(
        data_key="from",
        metadata={"description": "Payments that were made then or later. ISO 8601; without an offset, in UTC."},
    )
    until = Time(data_key="to", metadata={"description": "Payments that were made before."})
    group_by = String(
        validate=OneOf(["day", "week", "month"]),
        metadata={"description": "Adds `periods` in UTC, with what happened in each between `from` and `to`."},
    )

    @validates_schema
    def _require_order(self, data: dict[str, Any], **_: Any) -> None:
        if "since" in data and "until" in data and data["since"] >= data["until"]:
            raise ValidationError("Must be after from.", "to")

    @post_load
    def _use_one_name(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        org_id = data.get("org_id") or data.get("clerk_org_id")
        given = {**data, "org_id": org_id}
        return {key: value for key, value in given.items() if value is not None and key != "clerk_org_id"}


class StatsQuerySchema(StatsFilterSchema):
    """The same in a query, where a list is given by repeating its name, or with commas."""

    takes_null = False

    run_ids = BoundedList(
        _Filter(metadata={"pattern": "^[^,\\x00]+(,[^,\\x00]+)*$"}),
        max_items=MAX_RUNS,
        metadata={"description": "Several by repeating the name, or with commas; none of them may be empty."},
    )

    @pre_load
    def _split_runs(self, data: Any, **_: Any) -> Any:
        if "runIds" not in data:
            return data
        return {**data, "runIds": [run_id for given in data["runIds"] for run_id in given.split(",")]}


class CurrencyStatsSchema(CamelCaseSchema):
    """Money in one currency."""

    currency = String(required=True, metadata={"example": "usd"})
    payments = Integer(required=True, metadata=COUNT)
    gross_in_cents = Integer(required=True, metadata={"description": "What was received.", "example": 2000})
    refunded_in_cents = Integer(
        required=True, metadata={"description": "In the currency's smallest unit.", "example": 500}
    )
    disputed_in_cents = Integer(
        required=True, metadata={"description": "What open and lost disputes hold back.", "example": 500}
    )
    net_in_cents = Integer(
        required=True, metadata={"description": "Gross less refunded and disputed.", "example": 1000}
    )


class SummaryQuerySchema(OptionalAppQuerySchema):
    """Which of an organisation's payments to sum."""

    identity = ("org_id",)

    before = Time(metadata={"description": "Only payments that were made before. ISO 8601; without an offset, in UTC."})


class TotalsSchema(CurrencyStatsSchema):
    """What was paid in one currency, and what of it is lost."""

    lost_in_cents = Integer(
        required=True, metadata={"description": "Of disputedInCents, what won't come back.", "example": 500}
    )


class SummarySchema(CamelCaseSchema):
    """What an organisation has paid."""

    org_id = String(required=True, metadata={"example": "org_1"})
    totals = List(Nested(TotalsSchema), required=True)


class PeriodStatsSchema(CamelCaseSchema):
    """What happened in a day, a week from Monday on, or a month, in UTC, whenever the payment was made."""

    start = AwareDateTime(required=True, metadata={"description": "ISO 8601 in UTC."})
    currencies = List(
        Nested(CurrencyStatsSchema),
        required=True,
        metadata={
            "description": "The payments that were made in the period, what was received and refunded in it, and what "
            "disputes that began in it hold or have taken."
        },
    )


class StatsSchema(CamelCaseSchema):
    """Counts and sums."""

    total_payments = Integer(required=True, metadata=COUNT)
    total_amount_in_cents = Integer(
        required=True,
        metadata={"description": "The sum of all amounts, whatever their state and currency.", "example": 2000},
    )
    success_count = Integer(required=True, metadata=COUNT)
    failure_count = Integer(required=True, metadata=COUNT)
    refund_count = Integer(required=True, metadata=COUNT)
    dispute_count = Integer(required=True, metadata=COUNT)
    currencies = List(Nested(CurrencyStatsSchema), required=True)
    periods = List(
        Nested(PeriodStatsSchema),
        metadata={"description": "With groupBy: the periods in which something happened, the earliest first."},
    )
