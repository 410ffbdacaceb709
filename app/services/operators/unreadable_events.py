"""What Stripe listed among its events and nobody could read."""

from typing import Any

from sqlalchemy import literal_column, select

from app.database import Batch
from app.models import StripeEvent
from app.services import Services
from app.services.events.stripe_event import UNREADABLE

MAX_SHOWN = 1_000

# The type stands in the statement, since the index is of it alone.
_UNREADABLE = Batch(
    select(StripeEvent.received_at, StripeEvent.app_id, StripeEvent.object["listed"].label("listed"))
    .where(StripeEvent.type == literal_column(f"'{UNREADABLE}'"))
    .order_by(StripeEvent.received_at.desc())
    .limit(MAX_SHOWN)
)


def list_unreadable_events(*, services: Services) -> list[dict[str, Any]]:
    """The newest of them first, each as it came, without secrets and what is personal; they are kept for 90 days."""
    return [row._asdict() for row in services.database.run(_UNREADABLE)]
