"""An operation in our hands, and the lease by which it is: only its holder may move it, one process at a time."""

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Text, bindparam, case, func, update

from app.database import Batch
from app.errors import DATABASE_ERRORS, ServiceError, UpstreamError
from app.models import Operation, Step, TrackingState
from app.services import Services

log = logging.getLogger(__name__)


class LeaseLost(ServiceError):
    """The operation took longer than its lease, and another process has it now."""

    status = 503
    code = "payment_handed_over"
    retry_after_seconds = 1

    def __init__(self) -> None:
        super().__init__("This payment took too long and was handed over to another process; retry in a moment")


@dataclass(frozen=True, kw_only=True)
class HeldOperation:
    """An operation whose lease we hold, as far as walking it needs."""

    id: uuid.UUID
    app_id: str
    kind: str
    payment_id: uuid.UUID
    request: Mapping[str, Any]
    step: Step
    attempt: int
    lease_token: uuid.UUID
    run_id: str | None = None
    stripe_params: bytes | None = None
    asked_at: datetime | None = None
    asked_anew: bool = False
    answer_status: int | None = None
    recovery_tries: int = 0
    tracking_state: str | None = None

    @property
    def upstream_key(self) -> str:
        """The idempotency key of this attempt, at Stripe and at runs-service."""
        return f"{self.id}:{self.attempt}"

    @property
    def has_succeeded(self) -> bool:
        """Whether Stripe has done it."""
        return self.answer_status == 200


HELD_COLUMNS = tuple(getattr(Operation, name) for name in HeldOperation.__dataclass_fields__)

LEASE = func.now() + bindparam("lease")
HOLDS_LEASE = (Operation.id == bindparam("operation_id")) & (Operation.lease_token == bindparam("token"))

# Nothing that ends early keeps a retry waiting.
_RELEASE = Batch(
    update(Operation)
    .where(HOLDS_LEASE, Operation.step != Step.FINISHED)
    .values(
        lease_until=func.now() + bindparam("pause"),
        # Why it is stuck stays what is said of it.
        tracking_error=case(
            (Operation.tracking_state == TrackingState.STUCK, Operation.tracking_error),
            else_=bindparam("tracking_error", type_=Text),
        ),
    )
)


def held_operation(row: Any) -> HeldOperation:
    """An operation from its `HELD_COLUMNS`."""
    columns = row._asdict()
    # The driver shows bytea as a view of its memory.
    params = columns["stripe_params"]
    read = {"step": Step(columns["step"]), "stripe_params": None if params is None else bytes(params)}
    return HeldOperation(**{**columns, **read})


def held_by(operation: HeldOperation) -> dict[str, Any]:
    """The values for `HOLDS_LEASE`."""
    return {"operation_id": operation.id, "token": operation.lease_token}


def advance(services: Services, batch: Batch, operation: HeldOperation, **values: Any) -> None:
    """Move an operation that we hold, as a transaction of its own; the batch's rows tell that we hold it.

    :raises LeaseLost: when another process holds it by now.
    """
    if not services.database.run(batch, **held_by(operation), **values):
        raise LeaseLost


def lease_of(services: Services) -> timedelta:
    """How long an operation is in one process's hands."""
    return timedelta(seconds=services.settings.payment_lease_seconds)


def reason_of(error: Exception | None) -> str | None:
    """What an upstream did, in a few words of ours."""
    return f"{error.upstream} {error.reason}" if isinstance(error, UpstreamError) else None


def release(
    operation: HeldOperation, services: Services, *, pause: timedelta = timedelta(0), error: Exception | None = None
) -> None:
    """End the lease early, so that a retry need not wait for it; if that fails, it lapses by itself."""
    values = {"pause": pause, "tracking_error": reason_of(error)}
    try:
        services.database.run(_RELEASE, **held_by(operation), **values)
    except DATABASE_ERRORS:
        log.warning("the lease of operation %s could not be ended; it lapses by itself", operation.id)
