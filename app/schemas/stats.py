"""Statistics: what they are asked for, and what they say."""

from typing import Any, ClassVar

from marshmallow import post_load
from marshmallow.fields import Integer, List, Nested, String
from marshmallow.validate import Length

from app.schemas.base import CamelCaseSchema, RequestSchema, Text

MAX_RUNS = 1_000
CENTS = {"description": "In the currency's smallest unit."}


class StatsFilterSchema(RequestSchema):
    """Which payments to count: those that match all that is given."""

    document: ClassVar = {"example": {"appId": "shop"}}

    run_ids = List(
        Text(max_length=200),
        validate=Length(max=MAX_RUNS),
        metadata={"description": "Payments whose own run, or the caller's, is one of these."},
    )
    org_id = Text(max_length=200)
    clerk_org_id = Text(max_length=200, metadata={"description": "Another name for orgId, which wins."})
    brand_id = Text(max_length=200)
    app_id = Text(max_length=200)
    campaign_id = Text(max_length=200)

    @post_load
    def _use_one_name(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        org_id = data.get("org_id") or data.get("clerk_org_id")
        return {key: value for key, value in (data | {"org_id": org_id}).items() if value and key != "clerk_org_id"}


class StatsQuerySchema(StatsFilterSchema):
    """The same in a query, where a list is given by repeating its name, or with commas."""

    takes_null = False

    @post_load
    def _split_runs(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        run_ids = [part for run_id in data.pop("run_ids", ()) for part in run_id.split(",") if part]
        return data | {"run_ids": run_ids} if run_ids else data


class CurrencyStatsSchema(CamelCaseSchema):
    """Money in one currency."""

    currency = String(required=True)
    payments = Integer(required=True)
    gross_in_cents = Integer(required=True, metadata={"description": "What was received."})
    refunded_in_cents = Integer(required=True, metadata=CENTS)
    disputed_in_cents = Integer(required=True, metadata={"description": "What open and lost disputes hold back."})
    net_in_cents = Integer(required=True, metadata={"description": "Gross less refunded and disputed."})


class StatsSchema(CamelCaseSchema):
    """Counts and sums."""

    total_payments = Integer(required=True)
    total_amount_in_cents = Integer(
        required=True, metadata={"description": "The sum of all amounts, whatever their state and currency."}
    )
    success_count = Integer(required=True)
    failure_count = Integer(required=True)
    refund_count = Integer(required=True)
    dispute_count = Integer(required=True)
    currencies = List(Nested(CurrencyStatsSchema), required=True)
