"""How long it is kept what apps were told."""

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import delete, func, select

from app.database import Batch
from app.models import AppEvent
from app.services import Services

KEPT = timedelta(days=90)
BATCH = 500

# The oldest have the least numbers. Their deliveries go with them.
_oldest = select(AppEvent.number, AppEvent.created_at).order_by(AppEvent.number).limit(BATCH).subquery()
_DELETE = Batch(
    delete(AppEvent)
    .where(AppEvent.number.in_(select(_oldest.c.number).where(_oldest.c.created_at < func.now() - KEPT)))
    .returning(AppEvent.number)
)


def delete_old_app_events(services: Services) -> Iterator[int]:
    """Delete what apps were told more than 90 days ago, batch by batch; yield how many each held."""
    while deleted := services.database.run(_DELETE):
        yield len(deleted)
