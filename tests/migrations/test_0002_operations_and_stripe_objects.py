"""Migration 0002: what the version before left at any step is shown, answered, recovered and told of as before.

The version before makes the payments itself, against the stand-ins; only what no request brings about is written into
its tables. What the new version then does is done once, in the order of the fixtures, and looked at by the tests.
"""

import functools
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from sqlalchemy import CheckConstraint, Connection, create_engine, inspect, text

from app import create_app
from app.config import Settings
from app.models import Base, Operation, Payment, PaymentStatus, Step, TrackingState
from app.request_context import EXTENSION_KEY
from app.services import Services
from app.services.events.receive import fold_again
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from tests.books import assert_balanced, end_orphan_runs_at_once
from tests.databases import ROOT, dispose, migrate, migrated_database
from tests.factories import checkout, intent
from tests.stand_ins import StandIns
from tests.test_upgrade import git, is_known_to_git
from tests.web import API_KEY, WebProcess, clean_environment
from tests.webhooks import deliver, event, try_to_deliver

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not is_known_to_git(), reason="the version before is known to git only"),
]

MIGRATION = "migrations/versions/0002_operations_and_stripe_objects.py"
CHECKOUT, INTENT = "/checkout/create", "/payment-intent/create"
BODIES: Mapping[str, Callable[..., dict[str, Any]]] = {CHECKOUT: checkout, INTENT: intent}
# What a caller may leave out; the version before hashed it as if it had been sent.
DEFAULTS = {CHECKOUT: {"mode": "payment"}, INTENT: {"currency": "usd"}}
# An organisation's payment has a run of its own, a child of the caller's; others have the caller's, or none.
ORGANISATION, CALLERS_RUN, NOBODY = AUDIENCES = ("organisation", "caller's run", "nobody")
# A path, whom it is for, and whether with an Idempotency-Key.
WAYS = (
    *itertools.product(BODIES, (ORGANISATION,), (True, False)),
    (CHECKOUT, CALLERS_RUN, True),
    (INTENT, CALLERS_RUN, False),
    (CHECKOUT, NOBODY, False),
    (INTENT, NOBODY, True),
)

Json = dict[str, Any]


def fault(service: str, kind: str, **options: Any) -> Json:
    return {"service": service, "kind": kind, **options}


@dataclass(frozen=True, kw_only=True)
class State:
    """A state in which the version before leaves payments, and what becomes of them.

    :param faults: what goes wrong in the request
    :param changes: what is different in the body, by path
    :param answered: the status of that request's answer
    :param left: how the row was left besides, as columns of the old table
    :param retried: the status of a retry's answer after the migration
    :param recovered: what recovery does after the migration, where no retry has done it
    :param is_put_off: whether recovery has to wait
    """

    audiences: tuple[str, ...] = AUDIENCES
    faults: tuple[Json, ...] = ()
    changes: Mapping[str, Json] = field(default_factory=dict)
    answered: int = 200
    left: str | None = None
    retried: int = 200
    recovered: str | None = None
    is_put_off: bool = False


STRIPE_MADE_IT = fault("stripe", "reset", method="POST", executed=True)
STRIPE_MADE_NOTHING = fault("stripe", "reset", method="POST")
STRIPE_IS_BUSY = fault("stripe", "status", method="POST", status=429)
A_RUN_IS_LOST = fault("runs-service", "reset", method="POST", executed=True)
RUNS_DO_NOT_END = fault("runs-service", "reset", method="PATCH", times=2)
UNKNOWN = {CHECKOUT: {"lineItems": [{"priceId": "price_1", "quantity": 1}]}, INTENT: {"currency": "zzz"}}
A_DAY_AGO = "asked_at = asked_at - interval '24 hours'"

# What recovery by the version before has looked at.
LOOKED_AT = {
    "abandoned": State(faults=(STRIPE_IS_BUSY,), answered=429),
    "abandoned, and its run is not known": State(
        audiences=(ORGANISATION,),
        faults=(A_RUN_IS_LOST,),
        answered=503,
    ),
    "abandoned, and its run not ended": State(
        audiences=(ORGANISATION,),
        faults=(STRIPE_IS_BUSY,),
        answered=429,
        retried=409,
        recovered="settled",
        is_put_off=True,
    ),
    "stuck": State(
        faults=(STRIPE_MADE_IT,),
        changes={path: {"appId": "keyless"} for path in BODIES},
        answered=503,
        recovered="taken",
        is_put_off=True,
    ),
    "put off": State(faults=(STRIPE_MADE_IT,), answered=503, recovered="taken", is_put_off=True),
}
# What nobody has looked at since.
LEFT = {
    "finished": State(),
    "refused": State(changes=UNKNOWN, answered=400, retried=400),
    "refused, and its run not ended": State(
        audiences=(ORGANISATION,),
        faults=(RUNS_DO_NOT_END,),
        changes=UNKNOWN,
        answered=400,
        retried=400,
        recovered="settled",
    ),
    "accepted": State(
        audiences=(ORGANISATION,),
        faults=(fault("runs-service", "status", method="POST", status=503),),
        answered=503,
        recovered="abandoned",
    ),
    "accepted, and its run is not known": State(
        audiences=(ORGANISATION,),
        faults=(A_RUN_IS_LOST,),
        answered=503,
        recovered="abandoned",
    ),
    "taken back": State(faults=(STRIPE_IS_BUSY,), answered=429, recovered="abandoned"),
    "asked, and made": State(faults=(STRIPE_MADE_IT,), answered=503, recovered="taken"),
    "asked, and not made": State(faults=(STRIPE_MADE_NOTHING,), answered=503, recovered="taken"),
    "asked, and Stripe keeps a failure": State(
        faults=(fault("stripe", "status", method="POST", status=500, executed=True),),
        answered=502,
        retried=502,
        recovered="taken",
    ),
    "asked a day ago, and made": State(
        faults=(STRIPE_MADE_IT,), answered=503, left=A_DAY_AGO, retried=409, recovered="taken"
    ),
    "asked a day ago, and not made": State(
        faults=(STRIPE_MADE_NOTHING,), answered=503, left=A_DAY_AGO, retried=409, recovered="rejected"
    ),
    "asked anew": State(
        faults=(STRIPE_MADE_NOTHING,), answered=503, left="attempt = 2, asked_anew = true", recovered="taken"
    ),
    "in a lost process's hands": State(
        faults=(STRIPE_MADE_IT,),
        answered=503,
        left="lease_until = now() + interval '10 minutes'",
        retried=409,
        recovered="taken",
    ),
    "taken, and its cost not": State(
        audiences=(ORGANISATION, CALLERS_RUN),
        faults=(fault("runs-service", "status", path="/costs$", status=503),),
        recovered="settled",
    ),
    "taken, and its cost perhaps": State(
        audiences=(ORGANISATION, CALLERS_RUN),
        faults=(fault("runs-service", "reset", path="/costs$", executed=True),),
        recovered="settled",
    ),
    "taken, and its run not ended": State(
        audiences=(ORGANISATION,),
        faults=(RUNS_DO_NOT_END,),
        recovered="settled",
    ),
    "finished, and its cost refused": State(
        audiences=(ORGANISATION,),
        faults=(fault("runs-service", "status", path="/costs$", status=422, executed=True),),
    ),
}
STATES = LOOKED_AT | LEFT


@dataclass(frozen=True, kw_only=True)
class Made:
    """A payment that the version before was asked for, and what it answered."""

    id: str
    name: str
    path: str
    body: Json
    key: str | None
    answer: tuple[int, Json]

    @property
    def object_id(self) -> str:
        """The id of what Stripe made."""
        return str(self.answer[1]["sessionId" if self.path == CHECKOUT else "paymentIntentId"])

    @property
    def twin(self) -> Json:
        """The same request: with what is the default where it was left out, and without it where it was sent."""
        ((name, default),) = DEFAULTS[self.path].items()
        if name not in self.body:
            return {**self.body, name: default}
        return without(self.body, name) if self.body[name] == default else self.body


def without(body: Json, *names: str) -> Json:
    return {name: value for name, value in body.items() if name not in names}


# What customers and banks did, and Stripe told the version before: actions on what the payment made, and on its charge.
LIVES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "an intent that was paid": (INTENT, ("intents/pay",)),
    "an intent whose charge is asked back": (INTENT, ("intents/pay",)),
    "an intent that failed": (INTENT, ("intents/decline",)),
    "an intent that failed and was paid": (INTENT, ("intents/decline", "intents/pay")),
    "an intent that waits for the customer": (INTENT, ("intents/require_action",)),
    "an intent in process": (INTENT, ("intents/process",)),
    "an intent that is authorised": (INTENT, ("intents/authorize",)),
    "an intent that was captured": (INTENT, ("intents/authorize", "intents/capture")),
    "an intent that was canceled": (INTENT, ("intents/cancel",)),
    "an intent that was refunded": (INTENT, ("intents/pay", "charges/refund")),
    "an intent that is disputed": (INTENT, ("intents/pay", "charges/dispute")),
    "a checkout that was paid": (CHECKOUT, ("checkout/pay",)),
    "a checkout that failed": (CHECKOUT, ("checkout/decline",)),
    "a checkout that failed and was paid": (CHECKOUT, ("checkout/decline", "checkout/pay")),
    "a checkout that expired": (CHECKOUT, ("checkout/expire",)),
    "a checkout that is paid later": (CHECKOUT, ("checkout/pay_later",)),
    "a checkout that was paid later": (CHECKOUT, ("checkout/pay_later", "checkout/settle")),
    "a checkout that failed later": (CHECKOUT, ("checkout/pay_later", "checkout/fail_later")),
    "a checkout that was refunded in part": (CHECKOUT, ("checkout/pay", "charges/refund")),
    "a checkout that is disputed": (CHECKOUT, ("checkout/pay", "charges/dispute")),
    "an open intent": (INTENT, ()),
    "an open checkout": (CHECKOUT, ()),
}
# Of these the version before is told their end only: by which id the payment knows its subscription's first invoice,
# and an event that finds the payment by that.
SUBSCRIPTIONS = {
    "a subscription known by its id": ("subscription", "invoice.paid"),
    "a subscription known by its invoice": ("invoice", "invoice_payment.paid"),
}
# Their answer was lost, though Stripe's events came.
EARLY = {"an early checkout": CHECKOUT, "an early intent": INTENT}
# Their answer was lost, and recovery found them in Stripe's list a day later; no event about them came.
FOUND_LATE = {"an intent found paid": "intents/pay", "an intent found canceled": "intents/cancel"}
FOUND_OPEN = {"an intent found authorised": "intents/authorize"}
# What two payments were told to be theirs.
OF_TWO, OF_ANOTHER = "an intent that another's checkout names", "a checkout that names another's intent"
SECOND_OF_INVOICE, FIRST_OF_INVOICE = "the second checkout of an invoice", "the first checkout of an invoice"
# Stripe's older API made a checkout's intent with its session.
OLD_API = "a checkout of an older API"
MADE_WITH_SESSION = {"payment_intent_id": "pi_old", "subscription_id": "sub_old", "customer_id": "cus_old"}


@dataclass(frozen=True)
class World:
    """The stand-ins, and the database on which both versions work."""

    stand_ins: StandIns
    database: Connection
    environment: Mapping[str, str]
    told: set[str] = field(default_factory=set)
    customers: dict[str, str] = field(default_factory=dict)

    def rows(self, query: str, **values: Any) -> list[Json]:
        return [dict(row) for row in self.database.execute(text(query), values).mappings()]

    def newest_payment(self) -> str:
        (newest,) = self.rows("SELECT id::text FROM payments ORDER BY created_at DESC LIMIT 1")
        return str(newest["id"])

    def customer_of(self, app_id: str) -> str:
        """A customer of an app's at Stripe."""
        if app_id not in self.customers:
            url, auth = f"{self.stand_ins.url}/v1/customers", (f"sk_test_sandbox_{app_id}", "")
            self.customers[app_id] = requests.post(url, auth=auth, timeout=10).json()["id"]
        return self.customers[app_id]

    def act(self, action: str, object_id: str, **given: Any) -> list[Json]:
        """Do what a customer or a bank does; return the events that Stripe makes of it."""
        kind, _, name = action.partition("/")
        self.stand_ins.control(f"{kind}/{object_id}/{name}", **given)
        return self.new_events()

    def new_events(self) -> list[Json]:
        events = [told for told in reversed(self.objects("event")) if told["id"] not in self.told]
        self.told.update(told["id"] for told in events)
        return events

    def objects(self, kind: str) -> list[Json]:
        accounts = self.stand_ins.state()["accounts"].values()
        return [each for account in accounts for each in account["objects"].get(kind, [])]


@dataclass(frozen=True)
class VersionBefore:
    """The code of the first revision: its web process, and its commands."""

    world: World
    directory: Path
    web: WebProcess
    made: list[Made] = field(default_factory=list)

    def make(self, name: str, path: str, body: Json, *, key: str | None = None, answered: int = 200) -> Made:
        """Have a payment made, and see it fail as it should."""
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = self.web.post(path, body, **headers)
        assert answer.status_code == answered, (name, answer.text)
        payment_id = answer.json().get("paymentId") or self.world.newest_payment()
        self.made.append(
            Made(id=payment_id, name=name, path=path, body=body, key=key, answer=(answered, answer.json()))
        )
        return self.made[-1]

    def leave(self, states: Mapping[str, State]) -> None:
        """Leave payments in each state, in all ways in which they may be there."""
        for name, state in states.items():
            run_id = self.world.stand_ins.new_run()
            for path, audience, has_key in (way for way in WAYS if way[1] in state.audiences):
                body = body_for(path, audience, run_id) | state.changes.get(path, {})
                if path == INTENT:
                    body["customerId"] = self.world.customer_of(body["appId"])
                for wrong in state.faults:
                    self.world.stand_ins.control("faults", **wrong)
                key = f"{name}: {path} {audience}".replace(" ", "-") if has_key else None
                made = self.make(name, path, body, key=key, answered=state.answered)
                if state.left:
                    self.set(made, state.left)

    def set(self, made: Made, columns: str) -> None:
        """Write into its table what no request brings about."""
        self.world.database.execute(text(f"UPDATE payments SET {columns} WHERE id = '{made.id}'"))

    def tell(self, events: list[Json]) -> None:
        for told in events:
            assert try_to_deliver(self.web, told) == 200

    def get(self, path: str) -> Json:
        answer = requests.get(self.web.url + path, headers={"X-API-Key": API_KEY}, timeout=10)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def recover(self) -> None:
        """Run its recovery once; what is stuck makes it exit with 1."""
        command = [sys.executable, "-m", "flask", "recover"]
        environment = {**clean_environment(), **self.world.environment}
        assert subprocess.run(command, cwd=self.directory, env=environment, capture_output=True).returncode == 1


def body_for(path: str, audience: str, run_id: str) -> Json:
    """A request; what is the default is sent for one of the audiences."""
    body = BODIES[path](brandId="brand_1", campaignId="campaign_1", metadata={"orderId": "7"}, runId=run_id)
    if audience == ORGANISATION:
        return body
    if audience == CALLERS_RUN:
        return without(body, "orgId") | DEFAULTS[path]
    return without(body, "orgId", "runId")


def make_lives(before: VersionBefore) -> None:
    for name, (path, actions) in LIVES.items():
        made = before.make(name, path, BODIES[path](runId="run-of-nobody"))
        before.tell(before.world.new_events())
        for action in actions:
            acted_on = made.object_id
            if action.startswith("charges"):
                acted_on = before.get(f"/status/{made.id}")["payment"]["stripePaymentIntentId"]
            given = {"amount": 500} if name.endswith("in part") and action == "charges/refund" else {}
            before.tell(before.world.act(action, acted_on, **given))


def make_subscriptions(before: VersionBefore) -> None:
    price = {"appId": "shop", "productId": "prod_sandbox", "unitAmountInCents": 900, "recurring": {"interval": "month"}}
    price_id = before.web.post("/prices/create", price).json()["priceId"]
    body = checkout(mode="subscription", lineItems=[{"priceId": price_id, "quantity": 1}])
    paid = before.make("a subscription that was paid", CHECKOUT, body)
    before.tell(before.world.act("checkout/pay", paid.object_id))
    for name, (known_by, _) in SUBSCRIPTIONS.items():
        made = before.make(name, CHECKOUT, body)
        completed = before.world.act("checkout/pay", made.object_id)[-1]
        if known_by == "subscription":
            completed["data"]["object"]["invoice"] = None
        before.tell([completed])


def make_early(before: VersionBefore) -> None:
    for name, path in EARLY.items():
        before.world.stand_ins.control("faults", **STRIPE_MADE_IT)
        early = before.make(name, path, BODIES[path](), answered=503)
        action = "checkout/pay" if path == CHECKOUT else "intents/pay"
        before.tell(before.world.act(action, object_of(early.id, before.world)["id"]))
        before.tell(before.world.act("charges/refund", intent_of(early.id, before.world), amount=300))


def make_found_late(before: VersionBefore) -> None:
    for name, action in (FOUND_LATE | FOUND_OPEN).items():
        before.world.stand_ins.control("faults", **STRIPE_MADE_IT)
        lost = before.make(name, INTENT, intent(), answered=503)
        before.world.act(action, intent_of(lost.id, before.world))
        before.set(lost, A_DAY_AGO)


def make_of_two(before: VersionBefore) -> None:
    """The version before joined an event that names objects of two payments to the one with the lower id."""
    owner, other = make_in_order(before, (OF_TWO, INTENT), (OF_ANOTHER, CHECKOUT))
    before.tell([completed(other, payment_intent=owner.object_id)])
    for made in make_in_order(before, (SECOND_OF_INVOICE, CHECKOUT), (FIRST_OF_INVOICE, CHECKOUT)):
        before.tell([completed(made, subscription="sub_of_two", invoice="in_of_two")])


def make_in_order(before: VersionBefore, *named: tuple[str, str]) -> list[Made]:
    """Payments of which each has a lower id than the one before it, the last of their names."""
    while True:
        made = [before.make(name, path, BODIES[path]()) for name, path in named]
        if made == sorted(made, key=lambda each: each.id, reverse=True):
            return made


def completed(made: Made, **fields: Any) -> Json:
    paid = {"payment_status": "paid", "amount_total": 4000, "currency": "usd"}
    session = {"object": "checkout.session", "id": made.object_id, **paid, **fields}
    return event("checkout.session.completed", session)


def make_of_old_api(before: VersionBefore) -> None:
    made = before.make(OLD_API, CHECKOUT, checkout())
    columns = ", ".join(f"stripe_{name} = '{value}'" for name, value in MADE_WITH_SESSION.items())
    before.set(made, f"{columns}, created_as = created_as || '{json.dumps(MADE_WITH_SESSION)}'")


def object_of(payment_id: str, world: World) -> Json:
    """What Stripe made for a payment, whoever knows it."""
    made = [*world.objects("checkout.session"), *world.objects("payment_intent")]
    return next(each for each in made if each["metadata"].get("paymentId") == payment_id)


def intent_of(payment_id: str, world: World) -> str:
    made = object_of(payment_id, world)
    return str(made["id"] if made["object"] == "payment_intent" else made["payment_intent"])


def have_looked_at(before: VersionBefore) -> None:
    """Have the version before recover what it can't: Stripe, runs-service and key-service fail."""
    world, stand_ins = before.world, before.world.stand_ins
    before.leave(LOOKED_AT)
    for made in before.made:
        if made.name == "abandoned, and its run not ended":
            (row,) = world.rows("SELECT run_id FROM payments WHERE id = :id", id=uuid.UUID(made.id))
            stand_ins.control("faults", **RUNS_DO_NOT_END, path=row["run_id"])
    stand_ins.control("faults", **STRIPE_IS_BUSY)
    before.make("abandoned, and then tried again", INTENT, intent(), key="tried-again", answered=429)
    stand_ins.control("keys", appId="keyless", key=None)
    stand_ins.fault("stripe", "reset", method="POST", times=0)
    before.recover()
    stand_ins.control("keys", appId="keyless", key="sk_test_sandbox_keyless")
    stand_ins.heal()
    before.made.pop()
    before.make("abandoned, and then tried again", INTENT, intent(), key="tried-again")
    # However long this test takes.
    world.database.execute(text("UPDATE payments SET recover_at = recover_at + interval '1 hour'"))


def make_all(before: VersionBefore) -> None:
    """Have the version before bring payments into every state."""
    make_lives(before)
    make_subscriptions(before)
    make_of_two(before)
    make_of_old_api(before)
    make_found_late(before)
    have_looked_at(before)
    make_early(before)
    before.leave(LEFT)


def pages(get: Callable[[str], Json], path: str) -> list[Json]:
    """A list in small pages."""
    page = get(f"{path}?limit=30")
    found = [page]
    while page["nextCursor"]:
        page = get(f"{path}?limit=30&cursor={page['nextCursor']}")
        found.append(page)
    return found


def shown(get: Callable[[str], Json], made: list[Made], runs: list[str]) -> dict[str, Any]:
    """What a version shows of all payments: each, in lists, and in statistics."""
    of_runs = "&".join(f"runIds={run_id}" for run_id in runs)
    filters = ("appId=shop", "orgId=org_1", "brandId=brand_1", "campaignId=campaign_1", of_runs)
    paths = [f"/status/{each.id}" for each in made] + ["/stats", *(f"/stats?{each}" for each in filters)]
    lists = ["/status/by-org/org_1", *(f"/status/by-run/{run_id}" for run_id in runs)]
    return {path: get(path) for path in paths} | {path: pages(get, path) for path in lists}


# What callers are shown since later releases.
SINCE = {"actions", "amountReturnedInCents", "captureMethod", "origin", "stripeInvoiceId", "subscriptionStatus"}
# And of a payment's row, what later versions fill when they fold it.
FILLED_SINCE = {"movements_digest", "refund_statuses", "dispute_statuses", "state_number", "updated_at"}


def as_of_old(answer: Any) -> Any:
    """What the version before would have shown of an answer."""
    if isinstance(answer, list):
        return [as_of_old(each) for each in answer]
    if not isinstance(answer, dict):
        return answer
    return {name: as_of_old(value) for name, value in answer.items() if name not in SINCE}


OLD_PAYMENTS = "SELECT *, stripe_params::text AS stripe_params FROM payments ORDER BY id"
PAYMENTS, OPERATIONS = "SELECT * FROM payments ORDER BY id", "SELECT * FROM operations ORDER BY id"
EVENTS = "SELECT * FROM stripe_events ORDER BY app_id, id"


@dataclass(frozen=True, kw_only=True)
class Upgraded:
    """The new version on the migrated database, and what was there and was shown before and after."""

    world: World
    made: list[Made]
    client: FlaskClient
    services: Services
    old_payments: list[Json]
    old_events: list[Json]
    payments: list[Json]
    events: list[Json]
    operations: list[Json]
    shown_before: dict[str, Any]
    shown_after: dict[str, Any]

    def named(self, name: str) -> Made:
        return self.all_named(name)[-1]

    def all_named(self, name: str) -> list[Made]:
        return [each for each in self.made if each.name == name]

    def with_key(self, name: str) -> list[Made]:
        return [each for each in self.all_named(name) if each.key]

    def events_of(self, name: str) -> set[str]:
        """The ids of the events that the version before had joined to a payment."""
        return {each["id"] for each in self.old_events if str(each["payment_id"]) == self.named(name).id}

    def status_of(self, name: str) -> Json:
        return getter(self.client)(f"/status/{self.named(name).id}")


def getter(client: FlaskClient) -> Callable[[str], Json]:
    def get(path: str) -> Json:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        return dict(answer.json)

    return get


@pytest.fixture(scope="module")
def stand_ins() -> Iterator[StandIns]:
    """Stand-ins of this module's own, which nobody resets in between."""
    with StandIns.start() as started:
        started.reset()
        yield started


@pytest.fixture(scope="module")
def code_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code as it was before the migration came."""
    directory = tmp_path_factory.mktemp("before")
    added = git("log", "--diff-filter=A", "--format=%H", "-1", "--", MIGRATION).decode().strip()
    archive = git("archive", f"{added}^" if added else "HEAD", "app", "migrations", "wsgi.py")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(directory, filter="data")
    return directory


@pytest.fixture(scope="module")
def world(server_url: str, stand_ins: StandIns, code_before: Path) -> Iterator[World]:
    """A database at the first revision."""
    with migrated_database(server_url) as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
            migrate(url, directory=code_before / "migrations")
            environment = {
                "STRIPE_SERVICE_DATABASE_URL": url,
                "STRIPE_SERVICE_API_KEY": API_KEY,
                "STRIPE_WEBHOOK_SECRET": "whsec_tests",
                "UPSTREAM_TIMEOUT_SECONDS": "1",
                "WEB_CONCURRENCY": "1",
                **stand_ins.environment,
            }
            yield World(stand_ins, connection, environment)
        engine.dispose()


@pytest.fixture(scope="module")
def upgraded(world: World, code_before: Path) -> Iterator[Upgraded]:
    """The version before makes payments and ends; the database is migrated; the new version begins."""
    with WebProcess.start(world.environment, directory=code_before) as web:
        before = VersionBefore(world, code_before, web)
        make_all(before)
        runs = [row["id"] for row in world.rows("SELECT DISTINCT parent_run_id AS id FROM payments") if row["id"]]
        shown_before = shown(before.get, before.made, runs)
    old_payments, old_events = world.rows(OLD_PAYMENTS), world.rows(EVENTS)
    migrate(world.environment["STRIPE_SERVICE_DATABASE_URL"])
    application = create_app(Settings.from_environment(world.environment).require_valid())
    client = application.test_client()
    client.environ_base["HTTP_X_API_KEY"] = API_KEY
    yield Upgraded(
        world=world,
        made=before.made,
        client=client,
        services=application.extensions[EXTENSION_KEY],
        old_payments=old_payments,
        old_events=old_events,
        payments=world.rows(PAYMENTS),
        events=world.rows(EVENTS),
        operations=world.rows(OPERATIONS),
        shown_before=shown_before,
        shown_after=shown(getter(client), before.made, runs),
    )
    dispose(application)


@dataclass(frozen=True)
class Folded:
    """The rows after every payment was folded again."""

    payments: list[Json]
    events: list[Json]


@pytest.fixture(scope="module")
def folded(upgraded: Upgraded) -> Folded:
    for payment in upgraded.payments:
        fold_again(payment["id"], services=upgraded.services)
    return Folded(upgraded.world.rows(PAYMENTS), upgraded.world.rows(EVENTS))


@dataclass(frozen=True)
class Told:
    """Which payments the events of a name went to, and what is shown of the payment then."""

    payment_ids: set[str | None]
    shown: Json


def tell(upgraded: Upgraded, name: str, events: list[Json]) -> Told:
    assert events
    for each in events:
        assert deliver(upgraded.client, each).status_code == 200
    query = "SELECT payment_id::text AS id FROM stripe_events WHERE id = ANY(:ids)"
    found = upgraded.world.rows(query, ids=[each["id"] for each in events])
    return Told({row["id"] for row in found}, upgraded.status_of(name))


TOLD_AGAIN = "a checkout that was refunded in part"


def charge_of(upgraded: Upgraded, name: str) -> str:
    (success,) = upgraded.status_of(name)["events"]["successes"]
    return str(success["stripeChargeId"])


def about_invoice_of(upgraded: Upgraded, name: str, kind: str) -> list[Json]:
    """Stripe's event of a kind about the first invoice of a payment's subscription."""
    invoice_id = object_of(upgraded.named(name).id, upgraded.world)["invoice"]
    events = [each for each in upgraded.world.objects("event") if each["type"] == kind]
    return [each for each in events if invoice_id in map(each["data"]["object"].get, ("id", "invoice"))]


@pytest.fixture(scope="module")
def told(upgraded: Upgraded, folded: Folded) -> dict[str, Told]:
    """What customers and banks do after the migration, told to the new version."""
    world, found = upgraded.world, {}
    known = [each for each in world.objects("event") if each["id"] in upgraded.events_of(TOLD_AGAIN)]
    found[TOLD_AGAIN] = tell(upgraded, TOLD_AGAIN, known)
    world.new_events()
    for name, action in (("an open intent", "intents/pay"), ("an open checkout", "checkout/pay")):
        found[name] = tell(upgraded, name, world.act(action, upgraded.named(name).object_id))
    for name in ("an intent that was paid", "a checkout that was paid"):
        refund = world.act("charges/refund", charge_of(upgraded, name), amount=500)
        found[name] = tell(upgraded, name, refund)
    name = "an intent whose charge is asked back"
    dispute = {"object": "dispute", "id": "dp_1", "charge": charge_of(upgraded, name), "amount": 70, "status": "lost"}
    found[name] = tell(upgraded, name, [event("charge.dispute.created", dispute)])
    paid = {"object": "invoice_payment", "id": "inpay_1", "invoice": "in_of_two"}
    found[FIRST_OF_INVOICE] = tell(upgraded, FIRST_OF_INVOICE, [event("invoice_payment.paid", paid)])
    for name, (_, kind) in SUBSCRIPTIONS.items():
        found[name] = tell(upgraded, name, about_invoice_of(upgraded, name, kind))
    for name in FOUND_LATE:
        intent_id = intent_of(upgraded.named(name).id, world)
        events = [each for each in world.objects("event") if each["data"]["object"]["id"] == intent_id]
        found[name] = tell(upgraded, name, events)
    for name in EARLY:
        refund = world.act("charges/refund", intent_of(upgraded.named(name).id, world), amount=200)
        found[name] = tell(upgraded, name, refund)
    return found


Answer = tuple[int, Json]


@dataclass(frozen=True)
class Retried:
    """What retries were answered: with another body, with the same, and with what is the same by default."""

    other: Answer
    same: Answer
    twin: Answer


def retry(client: FlaskClient, made: Made, body: Json) -> Answer:
    answer = client.post(made.path, json=body, headers={"Idempotency-Key": made.key})
    return answer.status_code, without(answer.json, "requestId")


@pytest.fixture(scope="module")
def retried(upgraded: Upgraded, told: dict[str, Told]) -> dict[str, Retried]:
    """Every key is used again; by the payment's id."""
    ask = functools.partial(retry, upgraded.client)
    return {
        made.id: Retried(
            ask(made, {**made.body, "metadata": {"orderId": "8"}}), ask(made, made.body), ask(made, made.twin)
        )
        for made in upgraded.made
        if made.key
    }


@dataclass(frozen=True)
class Walked:
    """What recovery did with each operation: where it was its time, and then at once; and the runs that it ended."""

    in_time: dict[str, str]
    at_once: dict[str, str]
    orphans: list[str]


def recover(services: Services, *, at_once: bool) -> dict[str, str]:
    recovered = recover_operations(services, KINDS, command="flask recover", at_once=at_once)
    return {str(one.operation_id): str(one.outcome) for one in recovered}


@pytest.fixture(scope="module")
def walked(upgraded: Upgraded, retried: dict[str, Retried]) -> Walked:
    """Recovery walks what no retry has walked, after every lease has lapsed."""
    services, database = upgraded.services, upgraded.world.database
    lapse = "UPDATE operations SET lease_until = now() - interval '1 minute' WHERE step <> 'finished'"
    database.execute(text(lapse))
    in_time, at_once = (recover(services, at_once=at_once) for at_once in (False, True))
    return Walked(in_time, at_once, end_orphan_runs_at_once(services, database))


@pytest.fixture(scope="module")
def retried_last(upgraded: Upgraded, walked: Walked) -> dict[str, Answer]:
    """Every key is used once more; by the payment's id."""
    return {made.id: retry(upgraded.client, made, made.body) for made in upgraded.made if made.key}


each_state = pytest.mark.parametrize("name", STATES)


class TestRows:
    def test_an_operation_holds_what_its_payment_held(self, upgraded: Upgraded) -> None:
        for old, new in zip(upgraded.old_payments, upgraded.operations, strict=True):
            lease_until = None if old["step"] == "finished" else old["lease_until"]
            params = None if new["stripe_params"] is None else bytes(new["stripe_params"]).decode()
            expected = {name: old[name] for name in new if name != "payment_id"}
            assert new | {"stripe_params": params} == expected | {"payment_id": old["id"], "lease_until": lease_until}

    def test_a_payment_keeps_what_is_its_own(self, upgraded: Upgraded) -> None:
        own = {column.name for column in Payment.__table__.columns}
        for old, new in zip(upgraded.old_payments, upgraded.payments, strict=True):
            # Later migrations have added the others.
            assert {name: new[name] for name in own & old.keys()} == {name: old[name] for name in own & old.keys()}

    def test_an_event_is_what_it_was(self, upgraded: Upgraded) -> None:
        told = [each for each in upgraded.events if not each["id"].startswith("op_")]
        assert told == [{**each, "previous": None, "api_version": None} for each in upgraded.old_events]

    def test_a_creation_is_a_fact_of_its_attempt(self, upgraded: Upgraded) -> None:
        facts = {each["id"]: each for each in upgraded.events if each["id"].startswith("op_")}
        made = [payment for payment in upgraded.old_payments if payment["created_as"] is not None]
        assert {payment["attempt"] for payment in made} == {1, 2}
        assert facts.keys() == {f"op_{payment['id']}:{payment['attempt']}" for payment in made}
        assert all(each["refs"] == [each["object"]["id"]] for each in facts.values())

    @pytest.mark.parametrize("model", [Payment, Operation])
    def test_the_database_checks_what_the_models_say(self, upgraded: Upgraded, model: type[Base]) -> None:
        """Alembic doesn't compare these."""
        table = model.__table__
        found = {each["name"] for each in inspect(upgraded.world.database).get_check_constraints(table.name)}
        assert found == {each.name for each in table.constraints if isinstance(each, CheckConstraint)}


class TestStatus:
    @pytest.mark.parametrize("kind", ["/status/by-org/", "/status/by-run/", "/stats", "/status/"])
    def test_it_shows_what_the_version_before_showed(self, upgraded: Upgraded, kind: str) -> None:
        paths = [path for path in upgraded.shown_before if path.startswith(kind)]
        assert {path: as_of_old(upgraded.shown_after[path]) for path in paths} == {
            path: upgraded.shown_before[path] for path in paths
        }

    def test_payments_are_in_all_states(self, upgraded: Upgraded) -> None:
        """Fails when the payments of this test are no longer what the others take them for."""
        seen = {(row["step"], row["status"]) for row in upgraded.old_payments}
        assert {step for step, _ in seen} == set(Step)
        assert {status for _, status in seen} == set(PaymentStatus) - {PaymentStatus.REQUIRES_CONFIRMATION}
        assert {row["tracking_state"] for row in upgraded.old_payments} == set(TrackingState)


class TestFold:
    def test_it_changes_nothing(self, upgraded: Upgraded, folded: Folded) -> None:
        other = upgraded.named(OF_ANOTHER).id
        assert folded.events == upgraded.events
        assert [known_then(row) for row in folded.payments if str(row["id"]) != other] == [
            known_then(row) for row in upgraded.payments if str(row["id"]) != other
        ]

    def test_an_intent_may_be_of_two_payments(self, upgraded: Upgraded, folded: Folded) -> None:
        """The version before left out of the second payment what the first one had."""
        assert changes(upgraded, folded, OF_ANOTHER) == {"stripe_payment_intent_id": upgraded.named(OF_TWO).object_id}


def changes(upgraded: Upgraded, folded: Folded, name: str) -> Json:
    """What is different in a payment's row, besides that it was written."""
    before, after = (
        next(row for row in rows if str(row["id"]) == upgraded.named(name).id)
        for rows in (upgraded.payments, folded.payments)
    )
    return {name: value for name, value in known_then(after).items() if value != before[name]}


def known_then(row: Json) -> Json:
    return {name: value for name, value in row.items() if name not in FILLED_SINCE}


class TestWebhooks:
    @pytest.mark.parametrize(
        ("name", "status"),
        [
            ("an open intent", "succeeded"),
            ("an open checkout", "succeeded"),
            ("an intent that was paid", "partially_refunded"),
            ("a checkout that was paid", "partially_refunded"),
            ("an intent whose charge is asked back", "disputed"),
            ("an intent found paid", "succeeded"),
            ("an intent found canceled", "canceled"),
            (FIRST_OF_INVOICE, "succeeded"),
            ("a subscription known by its id", "succeeded"),
            ("a subscription known by its invoice", "succeeded"),
        ],
    )
    def test_an_event_finds_its_payment(
        self, upgraded: Upgraded, told: dict[str, Told], name: str, status: str
    ) -> None:
        assert told[name].payment_ids == {upgraded.named(name).id}
        assert told[name].shown["payment"]["status"] == status

    def test_an_event_that_is_told_again_changes_nothing(self, upgraded: Upgraded, told: dict[str, Told]) -> None:
        made = upgraded.named(TOLD_AGAIN)
        again = told[TOLD_AGAIN]
        assert again.payment_ids == {made.id}
        # What later versions fill was written.
        assert {**as_of_old(again.shown)["payment"], "updatedAt": None} == {
            **upgraded.shown_before[f"/status/{made.id}"]["payment"],
            "updatedAt": None,
        }
        assert as_of_old(again.shown)["events"] == upgraded.shown_before[f"/status/{made.id}"]["events"]

    @pytest.mark.parametrize("name", EARLY)
    def test_events_wait_for_an_answer_that_was_lost(
        self, upgraded: Upgraded, told: dict[str, Told], walked: Walked, name: str
    ) -> None:
        """Some were told before the migration, and some after it."""
        intent_id = intent_of(upgraded.named(name).id, upgraded.world)
        assert [each for each in upgraded.old_events if each["payment_id"] is None and intent_id in each["refs"]]
        assert (told[name].payment_ids, told[name].shown["payment"]["status"]) == ({None}, "creating")

        payment = upgraded.status_of(name)["payment"]
        assert (payment["status"], payment["amountRefundedInCents"]) == ("partially_refunded", 300 + 200)


class TestRetry:
    @each_state
    def test_the_same_body_gets_the_same_answer(
        self, upgraded: Upgraded, retried: dict[str, Retried], name: str
    ) -> None:
        """Where the first answer was that it failed for now, the retry goes on with the same payment."""
        state = STATES[name]
        for made in upgraded.with_key(name):
            answer = retried[made.id].same
            if state.answered == state.retried:
                assert answer == (state.answered, without(made.answer[1], "requestId"))
            else:
                assert (answer[0], answer[1].get("paymentId", made.id)) == (state.retried, made.id)

    @each_state
    def test_a_default_may_be_sent_or_left_out(
        self, upgraded: Upgraded, retried: dict[str, Retried], name: str
    ) -> None:
        for made in upgraded.with_key(name):
            assert retried[made.id].twin == retried[made.id].same

    @each_state
    def test_another_body_is_refused(self, upgraded: Upgraded, retried: dict[str, Retried], name: str) -> None:
        for made in upgraded.with_key(name):
            status, body = retried[made.id].other
            assert (status, body["code"]) == (422, "idempotency_key_reused")

    @each_state
    def test_an_answer_once_given_stays(
        self, upgraded: Upgraded, retried: dict[str, Retried], retried_last: dict[str, Answer], name: str
    ) -> None:
        for made in upgraded.with_key(name):
            if STATES[name].retried in (200, 400):
                assert retried_last[made.id] == retried[made.id].same
            else:
                assert (retried_last[made.id][0], retried_last[made.id][1]["paymentId"]) == (200, made.id)


class TestCreate:
    def test_it_takes_new_payments(self, upgraded: Upgraded, retried: dict[str, Retried]) -> None:
        for path, body in BODIES.items():
            first, again = (
                upgraded.client.post(path, json=body(), headers={"Idempotency-Key": f"new {path}".replace(" ", "-")})
                for _ in range(2)
            )
            assert (first.status_code, first.json) == (200, again.json)


class TestRecovery:
    @each_state
    def test_it_walks_what_was_left(self, upgraded: Upgraded, walked: Walked, name: str) -> None:
        state = STATES[name]
        recovered, not_yet = (walked.at_once, walked.in_time) if state.is_put_off else (walked.in_time, walked.at_once)
        is_walked_by_retry = state.retried == 200 and state.recovered != "settled"
        for made in upgraded.all_named(name):
            expected = None if made.key and is_walked_by_retry else state.recovered
            assert (recovered.get(made.id), not_yet.get(made.id)) == (expected, None)

    def test_it_ends_the_runs_that_nobody_knows(self, upgraded: Upgraded, walked: Walked) -> None:
        """A retry has made a second run, where runs-service had made one already and its answer was lost."""
        runs = upgraded.world.stand_ins.runs()
        assert {runs[run_id]["status"] for run_id in walked.orphans} == {"failed"}
        lost = [made for made in upgraded.made if made.name.endswith("its run is not known")]
        assert len(walked.orphans) == len(lost)

    def test_it_goes_on_under_the_second_key(self, upgraded: Upgraded, walked: Walked) -> None:
        sent = {entry["idempotencyKey"] for entry in upgraded.world.stand_ins.ledger("stripe")}
        for made in upgraded.all_named("asked anew"):
            assert {key for key in sent if key and key.startswith(made.id)} == {f"{made.id}:1", f"{made.id}:2"}

    def test_the_books_are_balanced(self, upgraded: Upgraded, retried_last: dict[str, Answer]) -> None:
        """One object for each payment, one cost, and no run that goes on."""
        assert_balanced(upgraded.world.database, upgraded.world.stand_ins)


class TestDowngrade:
    def test_it_refuses(self, upgraded: Upgraded, retried_last: dict[str, Answer]) -> None:
        command = [sys.executable, "-m", "flask", "db", "downgrade", "0001"]
        environment = os.environ | upgraded.world.environment
        downgrade = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

        assert downgrade.returncode != 0
        assert "What operations hold by now has no place in revision 0001" in downgrade.stdout
        assert upgraded.world.rows("SELECT version_num FROM alembic_version") == [{"version_num": "0002"}]
