"""Asking what has become of payments."""

from typing import Any

from app.request_context import services
from app.schemas.base import AppQuerySchema, OptionalAppQuerySchema
from app.schemas.stats import (
    NoFiltersSchema,
    StatsFilterSchema,
    StatsQuerySchema,
    StatsSchema,
    SummaryQuerySchema,
    SummarySchema,
)
from app.schemas.status import PageQuerySchema, PaymentDetailsSchema, PaymentPageSchema
from app.services.reports.statistics import compute_statistics, summarize_organisation
from app.services.reports.status import (
    find_payment,
    find_payment_by_stripe_id,
    list_payments_of_org,
    list_payments_of_run,
)
from app.web import Blueprint

blp = Blueprint("status", __name__, description="Asking what has become of payments.")

STATS_CODES = ("invalid_request", "unknown_filter", "identity_conflict", "database_unavailable", "overloaded")


@blp.route("/status/<payment_id>")
@blp.arguments(OptionalAppQuerySchema, location="query")
@blp.response(200, PaymentDetailsSchema)
@blp.errors(400, 401, 403, 404, 503)
def get_payment_status(of: dict[str, Any], payment_id: str) -> dict[str, Any]:
    """Show a payment and what happened to it."""
    return find_payment(payment_id, **of, services=services())


@blp.route("/status/by-stripe-id/<text:stripe_id>")
@blp.arguments(AppQuerySchema, location="query")
@blp.response(200, PaymentDetailsSchema)
@blp.errors(400, 401, 403, 404, 503)
def get_payment_by_stripe_id(of: dict[str, Any], stripe_id: str) -> dict[str, Any]:
    """Show the payment that knows this session, intent, charge, refund, dispute, invoice or subscription."""
    return find_payment_by_stripe_id(stripe_id, **of, services=services())


@blp.route("/status/by-org/<text:org_id>")
@blp.arguments(PageQuerySchema, location="query")
@blp.response(200, PaymentPageSchema)
@blp.errors("invalid_request", "identity_conflict", 401, 403, 503)
def list_payments_by_org(page: dict[str, Any], org_id: str) -> dict[str, Any]:
    """List the payments of an organisation."""
    return list_payments_of_org(org_id, page, services=services())


@blp.route("/status/by-run/<text:run_id>")
@blp.arguments(PageQuerySchema, location="query")
@blp.response(200, PaymentPageSchema)
@blp.errors("invalid_request", "identity_conflict", 401, 403, 503)
def list_payments_by_run(page: dict[str, Any], run_id: str) -> dict[str, Any]:
    """List the payments of a run, whether it is the payment's own or the caller's."""
    return list_payments_of_run(run_id, page, services=services())


@blp.route("/summary/by-org/<text:org_id>")
@blp.arguments(SummaryQuerySchema, location="query")
@blp.response(200, SummarySchema)
@blp.errors("invalid_request", "identity_conflict", 401, 403, "database_unavailable", "overloaded")
def get_summary_by_org(of: dict[str, Any], org_id: str) -> dict[str, Any]:
    """Show what an organisation has paid."""
    return summarize_organisation(org_id, **of, services=services())


@blp.route("/stats", methods=["POST"])
@blp.arguments(NoFiltersSchema, location="query")
@blp.arguments(StatsFilterSchema, required=False)
@blp.response(200, StatsSchema)
@blp.errors(400, 401, 403, 413, 415, 503, *STATS_CODES)
def query_stats(_: dict[str, Any], filters: dict[str, Any]) -> dict[str, Any]:
    """Compute statistics over payments."""
    return compute_statistics(filters, services=services())


@blp.route("/stats")
@blp.arguments(StatsQuerySchema, location="query")
@blp.response(200, StatsSchema)
@blp.errors(400, 401, 403, 503, *STATS_CODES)
def get_stats(filters: dict[str, Any]) -> dict[str, Any]:
    """Show statistics over payments."""
    return compute_statistics(filters, services=services())
