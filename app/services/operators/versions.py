"""In which versions of Stripe's API webhooks tell of payments, where these are not our own."""

from datetime import timedelta

from sqlalchemy import bindparam, func, select

from app.database import Batch
from app.models import Payment, StripeEvent
from app.services import Services
from app.services.upstreams.stripe import API_VERSION

LOOK_BACK = timedelta(days=1)

_app_id = func.coalesce(Payment.app_id, StripeEvent.app_id)
_OTHER_VERSIONS = Batch(
    select(_app_id.label("app_id"), StripeEvent.api_version.label("version"), func.count().label("events"))
    .outerjoin(Payment, Payment.id == StripeEvent.payment_id)
    .where(StripeEvent.received_at > func.now() - LOOK_BACK, StripeEvent.api_version != bindparam("ours"))
    .group_by(_app_id, StripeEvent.api_version)
    .order_by(_app_id, StripeEvent.api_version)
)


def other_versions(services: Services) -> dict[str, dict[str, int]]:
    """How many events of the last day were told in each other version, by app; of no payment's app it is empty."""
    found: dict[str, dict[str, int]] = {}
    for row in services.database.run(_OTHER_VERSIONS, ours=API_VERSION):
        found.setdefault(row.app_id, {})[row.version] = row.events
    return found
