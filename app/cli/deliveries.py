"""What commands say of events on their way to apps."""

from app.cli.printing import Printer
from app.services.notifications.deliver import Delivered


def print_undelivered(delivered: Delivered, printer: Printer) -> None:
    """Print a try that failed; those that succeed are many, and no news."""
    if delivered.error is None:
        return
    claimed = delivered.claimed
    kind = "disabled endpoint" if delivered.is_disabled else "not delivered"
    printer.thing(
        kind,
        event=claimed.event.event_id,
        endpoint=claimed.endpoint_id,
        attempts=claimed.attempts,
        reason=delivered.error,
    )
