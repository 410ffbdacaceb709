"""Asking what has become of payments."""

from typing import Any

from app.blueprints import Blueprint
from app.context import services
from app.schemas.status import PaymentStatusSchema
from app.services.status import find_payment

blp = Blueprint("status", __name__, description="Asking what has become of payments.")


@blp.route("/status/<payment_id>")
@blp.response(200, PaymentStatusSchema)
@blp.errors(401, 403, 404, 503)
def show_payment(payment_id: str) -> dict[str, Any]:
    """Show a payment and what happened to it."""
    return find_payment(payment_id, services=services())
