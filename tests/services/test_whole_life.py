"""The whole service as a state machine: whatever happens in whatever order, the database ends as Stripe has it."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Connection, text

from app.request_context import EXTENSION_KEY
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from app.services.reconciliation.reconcile import reconcile_apps
from tests.books import assert_balanced, end_orphan_runs_at_once, made_by_us
from tests.databases import empty
from tests.factories import checkout, intent
from tests.soak import amount
from tests.stand_ins import StandIns
from tests.webhooks import deliver

EXAMPLES = amount(30, 250)
STEPS = amount(20, 40)

PATHS = {"/checkout/create": checkout, "/payment-intent/create": intent}
ACTIONS = {
    "checkout.session": ["pay", "decline", "expire", "pay_later", "settle", "fail_later"],
    "payment_intent": ["pay", "decline", "require_action", "process", "authorize", "capture", "cancel"],
}
PATH_OF_OBJECT = {"checkout.session": "checkout", "payment_intent": "intents"}


def expected_status(stripe_object: dict[str, Any], account: dict[str, Any]) -> str:
    """What a person would say of a payment who looks at Stripe's objects."""
    objects = account["objects"]
    is_session = stripe_object["object"] == "checkout.session"
    intent_id = _intent_of(stripe_object, account) if is_session else stripe_object["id"]
    made = {each["id"]: each for each in objects["payment_intent"]}.get(intent_id)
    disputes = [each for each in objects["dispute"] if each["payment_intent"] == intent_id]
    refunds = [each for each in objects["refund"] if each["payment_intent"] == intent_id]
    # What is let go of an authorisation moves no balance: it never was received.
    given_back = [each for each in refunds if each["status"] == "pending" or each["balance_transaction"]]
    refunded = sum(each["amount"] for each in given_back if each["status"] in ("succeeded", "pending"))
    if any(each["status"] not in ("won", "warning_closed", "prevented") for each in disputes):
        return "disputed"
    if refunded:
        return "refunded" if refunded >= made["amount_received"] else "partially_refunded"
    if made and made["status"] == "succeeded":
        return "succeeded"
    is_named = not is_session or stripe_object["payment_intent"]
    if made and made["status"] == "canceled" and is_named:
        return "canceled"
    if is_session and stripe_object["status"] == "expired":
        return "expired"
    if is_session and stripe_object["status"] == "complete":
        return "failed" if made["status"] == "requires_payment_method" else "pending"
    if made is None:
        return "checkout_created"
    if made["status"] == "requires_payment_method":
        return "failed" if made["last_payment_error"] else "requires_payment_method"
    return str(made["status"])


def _intent_of(session: dict[str, Any], account: dict[str, Any]) -> str | None:
    """A session names its intent when it is paid; a failed try is known by the metadata."""
    carried = session["metadata"].get("paymentId")
    by_metadata = [
        each["id"] for each in account["objects"]["payment_intent"] if each["metadata"].get("paymentId") == carried
    ]
    return session["payment_intent"] or next(iter(by_metadata), None)


class WholeLife(RuleBasedStateMachine):
    """Callers, customers, banks, Stripe, crashes and time, each doing what they may."""

    client: FlaskClient
    stand_ins: StandIns
    db: Connection
    app: Flask

    @initialize()
    def begin(self) -> None:
        self.stand_ins.reset()
        empty(self.db)
        self.services = self.app.extensions[EXTENSION_KEY]
        self.keys: dict[str, tuple[str, dict[str, Any]]] = {}
        self.answers: dict[str, Any] = {}
        self.delivered: set[str] = set()

    def objects(self, kind: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Stripe's objects of a kind, with the account of each, in an order that doesn't depend on their ids."""
        accounts = self.stand_ins.state()["accounts"].values()
        return [(each, account) for account in accounts for each in reversed(account["objects"].get(kind, []))]

    @rule(path=st.sampled_from(list(PATHS)), app_id=st.sampled_from(["shop", "other"]))
    def create(self, path: str, app_id: str) -> None:
        key, body = f"key-{len(self.keys)}", PATHS[path](appId=app_id)
        self.keys[key] = (path, body)
        self.remember(key, self.client.post(path, json=body, headers={"Idempotency-Key": key}))

    @rule(pick=st.integers(0, 99))
    def retry(self, pick: int) -> None:
        if self.keys:
            key = sorted(self.keys)[pick % len(self.keys)]
            path, body = self.keys[key]
            self.remember(key, self.client.post(path, json=body, headers={"Idempotency-Key": key}))

    @rule(
        pick=st.integers(0, 99),
        action=st.sampled_from(["refund", "capture", "cancel"]),
        cents=st.none() | st.integers(1, 3000),
    )
    def ask(self, pick: int, action: str, cents: int | None) -> None:
        """A caller gives money back, takes what is held, or gives up; Stripe refuses what isn't possible."""
        made = sorted((key, answer) for key, answer in self.answers.items() if "/payments/" not in self.keys[key][0])
        if made:
            created, answer = made[pick % len(made)]
            key, path = f"key-{len(self.keys)}", f"/payments/{answer['paymentId']}/{action}"
            amount = {} if cents is None or action == "cancel" else {"amountInCents": cents}
            self.keys[key] = (path, {"appId": self.keys[created][1]["appId"], **amount})
            # As for a customer: what happens to a payment within one second isn't told apart by time.
            self.stand_ins.control("clock", advance=1)
            self.remember(key, self.client.post(path, json=self.keys[key][1], headers={"Idempotency-Key": key}))

    def remember(self, key: str, response: Any) -> None:
        refused = response.status_code == 400 and "/payments/" in self.keys[key][0]
        assert refused or response.status_code in (200, 409, 502, 503, 504), response.json
        if response.status_code == 200:
            assert response.json == self.answers.setdefault(key, response.json)

    @rule(
        service=st.sampled_from(["stripe", "runs-service"]),
        kind=st.sampled_from(["reset", "half_body", "status"]),
        executed=st.booleans(),
        skip=st.integers(0, 2),
    )
    def break_something(self, service: str, kind: str, executed: bool, skip: int) -> None:
        """The next call but so many goes wrong, before or after it was done."""
        self.stand_ins.fault(service, kind, method="POST", executed=executed, skip=skip)

    @rule(pick=st.integers(0, 99), kind=st.sampled_from(list(ACTIONS)), action=st.integers(0, 9))
    def act(self, pick: int, kind: str, action: int) -> None:
        """A customer does something; the stand-in refuses what isn't possible now."""
        found = self.objects(kind)
        if found:
            name = ACTIONS[kind][action % len(ACTIONS[kind])]
            self.try_to(f"{PATH_OF_OBJECT[kind]}/{found[pick % len(found)][0]['id']}/{name}")

    @rule(pick=st.integers(0, 99), amount=st.integers(1, 3000), pending=st.booleans())
    def refund(self, pick: int, amount: int, pending: bool) -> None:
        charges = [each for each, _ in self.objects("charge") if each["status"] == "succeeded"]
        if charges:
            self.try_to(f"charges/{charges[pick % len(charges)]['id']}/refund", amount=amount, pending=pending)

    @rule(pick=st.integers(0, 99), end=st.sampled_from(["succeed", "fail"]))
    def move_refund(self, pick: int, end: str) -> None:
        """A bank lets a refund succeed, or sends it back."""
        if refunds := self.objects("refund"):
            self.try_to(f"refunds/{refunds[pick % len(refunds)][0]['id']}/{end}")

    @rule(pick=st.integers(0, 99), end=st.sampled_from(["win", "lose"]))
    def dispute(self, pick: int, end: str) -> None:
        charges = [each for each, _ in self.objects("charge") if each["status"] == "succeeded"]
        if charges:
            self.try_to(f"charges/{charges[pick % len(charges)]['id']}/dispute")
            for each, _ in self.objects("dispute")[pick % 2 :]:
                self.try_to(f"disputes/{each['id']}/{end}")

    def try_to(self, path: str, **body: Any) -> None:
        """Do it a second later: what happens to a payment within one second is ranked, and not told apart by time."""
        self.stand_ins.control("clock", advance=1)
        response = self.stand_ins.session.post(f"{self.stand_ins.url}/_sandbox/{path}", json=body, timeout=30)
        assert response.status_code < 500, response.text

    @rule(picks=st.lists(st.integers(0, 999), max_size=8))
    def deliver_some(self, picks: list[int]) -> None:
        """Stripe delivers some events, in any order and again; the others are lost."""
        events = self.objects("event")
        for pick in picks if events else ():
            told = events[pick % len(events)][0]
            assert deliver(self.client, told).status_code == 200

    @rule()
    def recover(self) -> None:
        """A crash is a lease that nobody holds any more."""
        self.db.execute(text("UPDATE operations SET lease_until = now() WHERE step <> 'finished'"))
        list(recover_operations(self.services, KINDS, command="flask worker"))

    @rule()
    def reconcile(self) -> None:
        self.db.execute(text("UPDATE event_cursors SET lease_until = now()"))
        for app in reconcile_apps(self.services, command="flask worker"):
            assert app.error is None or "Stripe" in app.error

    @rule(hours=st.integers(1, 30))
    def move_clock(self, hours: int) -> None:
        """Time passes at Stripe, and for the payments that are in the middle."""
        self.stand_ins.control("clock", advance=hours * 3600)
        self.db.execute(text("UPDATE operations SET asked_at = asked_at - :h * interval '1 hour'"), {"h": hours})
        self.db.execute(
            text(
                "UPDATE event_cursors SET reconciled_until = reconciled_until - :h * interval '1 hour',"
                " window_since = window_since - :h * interval '1 hour',"
                " window_until = window_until - :h * interval '1 hour'"
            ),
            {"h": hours},
        )

    @invariant()
    def nothing_is_doubled(self) -> None:
        for payment_id, made in made_by_us(self.stand_ins).items():
            assert len(made) == 1, payment_id

    def teardown(self) -> None:
        if not hasattr(self, "services"):
            return
        self.stand_ins.heal()
        for _ in range(3):
            self.db.execute(text("UPDATE operations SET lease_until = now() WHERE step <> 'finished'"))
            list(recover_operations(self.services, KINDS, command="flask recover", at_once=True))
        end_orphan_runs_at_once(self.services, self.db)
        self.reconcile()
        assert_balanced(self.db, self.stand_ins)
        told = {str(row.id): row.status for row in self.db.execute(text("SELECT id, status FROM payments"))}
        accounts = {each["id"]: account for kind in PATH_OF_OBJECT for each, account in self.objects(kind)}
        for payment_id, made in made_by_us(self.stand_ins).items():
            assert told[payment_id] == expected_status(made[0], accounts[made[0]["id"]])


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_the_database_ends_as_stripe_has_it(
    app: Flask, client: FlaskClient, stand_ins: StandIns, db: Connection
) -> None:
    """Creates, actions, retries, payments, failures, refunds, disputes, lost webhooks, crashes, recovery, and time."""
    machine = type("Machine", (WholeLife,), {"app": app, "client": client, "stand_ins": stand_ins, "db": db})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
