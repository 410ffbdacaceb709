"""The worker's jobs: what each does in a turn, and how often its turn comes."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.cli.deliveries import print_undelivered
from app.cli.endpoints import print_synced
from app.cli.printing import Printer
from app.cli.reconciliation import print_put_off, print_reconciled
from app.cli.recovery import print_ended_run, print_recovered
from app.config import Settings
from app.schemas.events import EventBodySchema
from app.services import Services
from app.services.kinds import KINDS
from app.services.notifications.deliver import LOOK_SECONDS, deliver_events
from app.services.notifications.retention import delete_old_app_events
from app.services.operations.recovery import recover_operations
from app.services.payments.orphan_runs import end_orphan_runs
from app.services.reconciliation.reconcile import reconcile_apps
from app.services.reconciliation.subscriptions import ask_about_subscriptions
from app.services.reconciliation.waiting_events import delete_old_waiting_events, rejoin_waiting_events
from app.services.webhook_endpoints.sync import sync_endpoints

COMMAND = "flask worker"
# Often enough that a payment waits for recovery no longer than a person would notice.
RECOVERY_SECONDS = 1.0
# A waiting event is looked at again for this long after it was received.
REJOIN_OVERLAP = timedelta(hours=1)

_write_event = EventBodySchema().dump

Turn = Callable[[Services, Printer], None]


@dataclass(frozen=True)
class Job:
    """Work that is done again and again.

    :param every_seconds: from the end of a turn to the next one
    :param take_turn: does the work once and prints what it did; it ends between two rows when `services.stop` is set
    """

    name: str
    every_seconds: float
    take_turn: Turn


def worker_jobs(settings: Settings) -> tuple[Job, ...]:
    """Everything that the worker does, side by side; of endpoints only where Stripe can be told an address."""
    endpoints = Job("webhook endpoints", settings.reconcile_seconds, _sync_endpoints)
    return (
        Job("recovery", RECOVERY_SECONDS, _recover),
        Job("orphan runs", RECOVERY_SECONDS, _end_orphan_runs),
        Job("reconciliation", settings.reconcile_seconds, _reconcile),
        Job("subscriptions in doubt", RECOVERY_SECONDS, _ask_about_subscriptions),
        Job("waiting events", settings.reconcile_seconds, _rejoin_by_turns()),
        Job("old waiting events", settings.reconcile_seconds, _delete_old_waiting_events),
        Job("deliveries", LOOK_SECONDS, _deliver),
        Job("old app events", settings.reconcile_seconds, _delete_old_app_events),
        *((endpoints,) if settings.public_url else ()),
    )


def _recover(services: Services, printer: Printer) -> None:
    for recovered in recover_operations(services, KINDS, command=COMMAND):
        print_recovered(recovered, printer)


def _end_orphan_runs(services: Services, printer: Printer) -> None:
    for run_id in end_orphan_runs(services, command=COMMAND, once=False):
        print_ended_run(run_id, printer)


def _reconcile(services: Services, printer: Printer) -> None:
    for app in reconcile_apps(services, command=COMMAND, again_after_seconds=services.settings.reconcile_seconds):
        if app.stored or app.unreadable or app.error:
            print_reconciled(app, printer)


def _ask_about_subscriptions(services: Services, printer: Printer) -> None:
    for asked in ask_about_subscriptions(services, command=COMMAND):
        printer.thing("asked about a subscription", subscription=asked.subscription_id, error=asked.error)


def _rejoin_by_turns() -> Turn:
    """Look at every waiting event in the first turn, and then at those received since shortly before the last one.

    A turn that didn't come to its end is no last one, nor is one that passed over a payment.
    """
    since: datetime | None = None

    def rejoin(services: Services, printer: Printer) -> None:
        nonlocal since
        began_at = datetime.now(UTC)
        is_whole = True
        for rejoined in rejoin_waiting_events(services, since=since):
            if rejoined.joined:
                printer.thing("joined events", payments=rejoined.joined)
            print_put_off(rejoined, printer)
            is_whole = is_whole and not rejoined.put_off
            services.stop.check()
        if is_whole:
            since = began_at - REJOIN_OVERLAP

    return rejoin


def _sync_endpoints(services: Services, printer: Printer) -> None:
    """Look at the accounts that were not looked at for a day, and at those of new apps."""
    for looked in sync_endpoints(services, command=COMMAND, only_due=True):
        if looked.done or looked.error:
            print_synced(looked, printer)


def _delete_old_waiting_events(services: Services, printer: Printer) -> None:
    for deleted in delete_old_waiting_events(services):
        printer.thing("deleted waiting events", count=deleted)
        services.stop.check()


def _deliver(services: Services, printer: Printer) -> None:
    for delivered in deliver_events(services, _write_event, command=COMMAND):
        print_undelivered(delivered, printer)


def _delete_old_app_events(services: Services, printer: Printer) -> None:
    for deleted in delete_old_app_events(services):
        printer.thing("deleted app events", count=deleted)
        services.stop.check()
