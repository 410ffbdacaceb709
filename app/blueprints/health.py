"""Whether the service is there, and whether it can work."""

from typing import Any

from flask import Response

from app.request_context import services
from app.schemas.health import HealthSchema, ReadinessSchema
from app.services.operators.readiness import check_readiness
from app.version import VERSION
from app.web import Blueprint

WELCOME = "stripe-service: payments for apps with Stripe. The routes are described at /docs\n"
NOT_READY = {"status": "unavailable", "checks": {"database": "unavailable", "migrations": "unknown"}}

blp = Blueprint("health", __name__, description="Whether the service is there.")


@blp.route("/")
@blp.response(200, {"type": "string"}, content_type="text/plain", description="A short text.", example=WELCOME)
@blp.doc(security=[])
def get_welcome() -> Any:
    """Say what this is."""
    return Response(WELCOME, mimetype="text/plain")


@blp.route("/health")
@blp.response(200, HealthSchema)
@blp.doc(security=[])
def get_health() -> dict[str, str]:
    """Say that the process answers; the database isn't asked."""
    return {"status": "ok", "service": "stripe-service", "version": VERSION}


@blp.route("/health/ready")
@blp.response(200, ReadinessSchema)
@blp.alt_response(503, schema=ReadinessSchema, description="What is wrong, by name.", example=NOT_READY)
@blp.doc(security=[])
def get_readiness() -> Any:
    """Say whether the database answers and has the migrations of this version."""
    checks = check_readiness(services())
    ready = all(answer == "ok" for answer in checks.values())
    return {"status": "ok" if ready else "unavailable", "checks": checks}, 200 if ready else 503
