"""The engine's statements, one by one: each moves an operation from the steps of its row in the table, and for its
holder only. What tells one request from another, and what the database refuses of an operation.
"""

import hashlib
import itertools
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import orjson
import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from app.database import Batch
from app.models import Step
from app.schemas.checkout import CheckoutCreateSchema
from app.schemas.payments import PaymentIntentCreateSchema
from app.services import Services
from app.services.events.stripe_event import NotAnEvent, parse_event
from app.services.operations import accept, operation, recovery
from app.services.operations.accept import OperationRequest
from app.services.operations.engine import ABANDON, ASK, FINISH, REFUSE, TAKE, TAKE_BACK, take
from app.services.operations.kind import Kind
from app.services.operations.operation import HeldOperation, LeaseLost
from app.services.operations.recovery import command_context
from app.services.payments.kinds import (
    CREATE_CHECKOUT_SESSION,
    CREATE_PAYMENT_INTENT,
    CheckoutSession,
    PaymentIntent,
)
from tests.factories import checkout, intent

LEASE = timedelta(minutes=1)
STEPS = list(Step)


@dataclass(frozen=True)
class Row:
    """An operation that was inserted, and its payment."""

    id: uuid.UUID
    payment_id: uuid.UUID
    token: uuid.UUID

    def held_by(self, token: uuid.UUID) -> dict[str, Any]:
        return {"operation_id": self.id, "token": token}


def insert_row(
    db: Connection,
    step: Step,
    *,
    kind: str = "payment_intent",
    of_its_payment: bool = True,
    payment_status: str | None = None,
    **columns: Any,
) -> Row:
    """Insert an operation as it stands at a step, and its payment.

    :param of_its_payment: whether the operation is the one that creates the payment
    """
    payment_id = uuid.uuid4()
    row = Row(payment_id if of_its_payment else uuid.uuid4(), payment_id, uuid.uuid4())
    is_past_stripe = step in (Step.TAKEN, Step.FINISHED)
    status = payment_status or ("requires_payment_method" if is_past_stripe else "creating")
    db.execute(
        text("INSERT INTO payments (id, kind, app_id, status, stripe_payment_intent_id, run_id)"
             " VALUES (:id, :kind, 'shop', :status, :made, 'run_of_payment')"),
        {
            "id": payment_id,
            "kind": kind,
            "status": status,
            "made": None if status in ("creating", "rejected") else "pi_1",
        },
    )  # fmt: skip
    values = {
        "id": row.id,
        "app_id": "shop",
        "kind": kind,
        "payment_id": payment_id,
        "request_hash": b"hash",
        "request": '{"app_id": "shop", "org_id": "org_1", "amount_in_cents": 2000}',
        "step": step,
        "lease_token": row.token,
        "lease_in": None if step is Step.FINISHED else LEASE,
        "stripe_params": None if step is Step.ACCEPTED else b"{}",
        "asked_ago": None if step is Step.ACCEPTED else timedelta(seconds=1),
        "asked_anew": False,
        "answer_status": 200 if is_past_stripe else None,
        "answer": '{"success": true}' if is_past_stripe else None,
        "run_id": "run_of_operation",
        "tracking_state": "pending",
        **columns,
    }
    db.execute(
        text("INSERT INTO operations (id, app_id, kind, payment_id, request_hash, request, step, lease_token,"
             " lease_until, stripe_params, asked_at, asked_anew, answer_status, answer, run_id, tracking_state)"
             " VALUES (:id, :app_id, :kind, :payment_id, :request_hash, CAST(:request AS jsonb), :step, :lease_token,"
             " now() + CAST(:lease_in AS interval), :stripe_params, now() - CAST(:asked_ago AS interval), :asked_anew,"
             " :answer_status, CAST(:answer AS json), :run_id, :tracking_state)"),
        values,
    )  # fmt: skip
    return row


def everything(db: Connection) -> list[Any]:
    """All rows, each with the transaction that wrote it last."""
    return [
        db.execute(text(f"SELECT xmin::text, t.*::text FROM {table} t ORDER BY 1, 2")).all()
        for table in ("operations", "payments", "stripe_events", "stripe_objects")
    ]


def step_of(db: Connection, row: Row) -> str:
    return str(db.execute(text("SELECT step FROM operations WHERE id = :id"), {"id": row.id}).scalar_one())


@dataclass(frozen=True)
class Statement:
    """A row of the table, or several: from which steps a statement moves an operation, and where to.

    :param tells: whether its rows tell that it has moved one
    """

    batch: Batch
    moves: Mapping[Step, Step]
    values: Mapping[str, Any] = field(default_factory=dict)
    tells: bool = True


_ANSWER = {"answer_status": 400, "answer": {"error": "No.", "code": "no"}}
_BACKOFF = {"pause": LEASE, "backoff": LEASE, "is_stuck": True, "tracking_error": "why"}
UNFINISHED = {step: step for step in (Step.ACCEPTED, Step.ASKED, Step.TAKEN)}
STATEMENTS = {
    "ASK": Statement(ASK, {Step.ACCEPTED: Step.ASKED}, {"run_id": "run_new", "stripe_params": b'{"a": 1}'}),
    "TAKE_BACK": Statement(TAKE_BACK, {Step.ASKED: Step.ACCEPTED}),
    "TAKE": Statement(TAKE, {Step.ASKED: Step.TAKEN}, _ANSWER),
    "REFUSE": Statement(REFUSE, {Step.ASKED: Step.TAKEN}, _ANSWER),
    "ABANDON": Statement(ABANDON, {Step.ACCEPTED: Step.TAKEN, Step.ASKED: Step.TAKEN}),
    "FINISH": Statement(
        FINISH, {Step.TAKEN: Step.FINISHED}, {"tracking_state": "complete", "tracking_error": None}
    ),
    "ASK_ANEW": Statement(recovery._ASK_ANEW, {Step.ASKED: Step.ASKED}),
    "_EXTEND": Statement(recovery._EXTEND, {Step.ASKED: Step.ASKED}, {"lease": LEASE}),
    "_PUT_OFF": Statement(recovery._PUT_OFF, UNFINISHED, _BACKOFF, tells=False),
    "_RELEASE": Statement(operation._RELEASE, UNFINISHED, {"pause": LEASE, "tracking_error": "why"}, tells=False),
}  # fmt: skip


def tracking_after(name: str, services: Services, db: Connection, **changes: Any) -> Any:
    """State and error of a stuck operation, the only one, after a statement of its holder's."""
    row, statement = insert_row(db, Step.ASKED), STATEMENTS[name]
    db.execute(text("UPDATE operations SET tracking_state = 'stuck', tracking_error = 'No key'"))
    services.database.run(statement.batch, **row.held_by(row.token), **{**statement.values, **changes})
    return db.execute(text("SELECT tracking_state, tracking_error FROM operations")).one()


class TestStuck:
    @pytest.mark.parametrize("name", ["TAKE", "REFUSE", "ABANDON"])
    def test_it_ends_with_what_decides_the_operation(self, services: Services, db: Connection, name: str) -> None:
        state, error = tracking_after(name, services, db)

        assert (state in ("pending", "none"), error) == (True, None)

    @pytest.mark.parametrize(("name", "changes"), [("_RELEASE", {}), ("_PUT_OFF", {"is_stuck": False})])
    def test_it_stays_with_its_reason_when_nothing_is_decided(
        self, services: Services, db: Connection, name: str, changes: dict[str, Any]
    ) -> None:
        assert tracking_after(name, services, db, **changes) == ("stuck", "No key")


class TestStatements:
    @pytest.mark.parametrize("is_holder", [True, False], ids=["holder", "other"])
    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("name", STATEMENTS)
    def test_it_moves_what_its_holder_has_from_its_own_steps_only(
        self, services: Services, db: Connection, name: str, step: Step, is_holder: bool
    ) -> None:
        """Fails when a statement doesn't ask for the step, or for the lease's token."""
        statement, row = STATEMENTS[name], insert_row(db, step)
        before = everything(db)

        token = row.token if is_holder else uuid.uuid4()
        rows = services.database.run(statement.batch, **row.held_by(token), **statement.values)

        if is_holder and step in statement.moves:
            assert step_of(db, row) == statement.moves[step]
            assert everything(db) != before
            assert bool(rows) == statement.tells
        else:
            assert (everything(db), rows) == (before, [])

    def test_it_asks_anew_once(self, services: Services, db: Connection) -> None:
        row = insert_row(db, Step.ASKED, asked_anew=True)
        before = everything(db)

        assert services.database.run(recovery._ASK_ANEW, **row.held_by(row.token)) == []
        assert everything(db) == before

    @pytest.mark.parametrize(("name", "kept"), [("REFUSE", 400), ("ABANDON", None)])
    def test_it_rejects_the_payment_that_the_operation_creates(
        self, services: Services, db: Connection, name: str, kept: int | None
    ) -> None:
        row = insert_row(db, Step.ASKED)
        services.database.run(STATEMENTS[name].batch, **row.held_by(row.token), **STATEMENTS[name].values)

        found = db.execute(
            text("SELECT status, payments.run_id, answer_status FROM payments JOIN operations USING (id)")
        )
        assert tuple(found.one()) == ("rejected", "run_of_operation", kept)

    def test_it_has_no_lease_once_it_is_finished(self, services: Services, db: Connection) -> None:
        row = insert_row(db, Step.TAKEN)
        services.database.run(FINISH, **row.held_by(row.token), tracking_state="failed", tracking_error="why")

        found = db.execute(text("SELECT lease_until, tracking_state, tracking_error FROM operations")).one()
        assert tuple(found) == (None, "failed", "why")


LAPSED = {"lease_in": -timedelta(seconds=1)}
NO_ANSWER = {"answer_status": None, "answer": None}


class TestTakeOver:
    """CONTINUE and RESTART, which a retry sends in one message."""

    @pytest.mark.parametrize(
        ("step", "columns", "next_step"),
        [
            (Step.ACCEPTED, LAPSED, Step.ACCEPTED),
            (Step.ASKED, LAPSED, Step.ASKED),
            (Step.FINISHED, NO_ANSWER, Step.ACCEPTED),
            # Somebody holds it.
            (Step.ACCEPTED, {}, None),
            (Step.ASKED, {}, None),
            (Step.TAKEN, {}, None),
            (Step.TAKEN, NO_ANSWER, None),
            # Stripe has forgotten the idempotency key: recovery has to look.
            (Step.ASKED, {**LAPSED, "asked_ago": timedelta(hours=23, seconds=1)}, None),
            # Its end is recovery's.
            (Step.TAKEN, LAPSED, None),
            (Step.TAKEN, {**LAPSED, **NO_ANSWER}, None),
            # An answer was kept.
            (Step.ASKED, {**LAPSED, "answer_status": 200, "answer": "{}"}, None),
            (Step.FINISHED, {}, None),
        ],
    )
    def test_it_takes_over_what_nobody_holds_and_has_no_answer(
        self, services: Services, db: Connection, step: Step, columns: dict[str, Any], next_step: Step | None
    ) -> None:
        """Fails when a retry needs no lapsed lease, or starts anew what has an answer."""
        row = insert_row(db, step, **columns)
        before, token = everything(db), uuid.uuid4()

        taken_over = services.database.run(accept._TAKE_OVER, **row.held_by(token), lease=LEASE)

        if next_step is None:
            assert (everything(db), taken_over) == (before, [])
        else:
            assert [(held.id, held.step, held.lease_token) for held in taken_over] == [(row.id, next_step, token)]
            assert step_of(db, row) == next_step

    def test_it_starts_anew_in_the_same_row_with_nothing_of_the_former_attempt(
        self, services: Services, db: Connection
    ) -> None:
        row = insert_row(db, Step.FINISHED, payment_status="rejected", asked_anew=True, **NO_ANSWER)
        services.database.run(accept._TAKE_OVER, **row.held_by(uuid.uuid4()), lease=LEASE)

        found = db.execute(
            text("SELECT attempt, operations.run_id, stripe_params, asked_at, asked_anew, tracking_state,"
                 " tracking_error, status, run_search_until > now() FROM operations JOIN payments USING (id)")
        ).one()  # fmt: skip
        assert tuple(found) == (2, None, None, None, False, "pending", None, "creating", True)

    def test_it_shows_no_run_of_the_former_attempt(
        self, client: FlaskClient, services: Services, db: Connection
    ) -> None:
        """The former attempt's run has failed; the new one's isn't made yet."""
        row = insert_row(db, Step.FINISHED, payment_status="rejected", **NO_ANSWER)
        services.database.run(accept._TAKE_OVER, **row.held_by(uuid.uuid4()), lease=LEASE)

        assert client.get(f"/status/{row.payment_id}").json["payment"]["runId"] is None


class TestTake:
    MADE = PaymentIntent(
        id="pi_new",
        client_secret="secret",
        status="requires_payment_method",
        stripe_object={"id": "pi_new", "object": "payment_intent", "amount": 2000, "currency": "usd"},
    )

    def take(
        self,
        row: Row,
        token: uuid.UUID,
        services: Services,
        *,
        kind: Kind[Any] = CREATE_PAYMENT_INTENT,
        made: PaymentIntent | CheckoutSession = MADE,
    ) -> None:
        held = HeldOperation(
            id=row.id,
            app_id="shop",
            kind=kind.name,
            payment_id=row.payment_id,
            request={"app_id": "shop"},
            step=Step.ASKED,
            attempt=1,
            lease_token=token,
        )
        take(held, kind, made, services, command_context("flask recover", services))

    def test_it_leaves_nothing_when_the_lease_is_lost(self, services: Services, db: Connection) -> None:
        """Fails when the fact is stored though another process holds the operation."""
        row = insert_row(db, Step.ASKED)
        before = everything(db)

        with pytest.raises(LeaseLost):
            self.take(row, uuid.uuid4(), services)

        assert everything(db) == before
        assert db.execute(text("SELECT count(*) FROM stripe_events")).scalar_one() == 0

    def test_it_records_the_answer_the_fact_and_the_id_for_its_holder(self, services: Services, db: Connection) -> None:
        row = insert_row(db, Step.ASKED, run_id=None, tracking_state="none")
        self.take(row, row.token, services)

        assert step_of(db, row) == Step.FINISHED
        assert db.execute(text("SELECT id, payment_id FROM stripe_objects")).one() == ("pi_new", row.payment_id)
        assert db.execute(text("SELECT id FROM stripe_events")).scalar_one() == f"op_{row.id}:1"
        assert db.execute(text("SELECT status FROM payments")).scalar_one() == "requires_payment_method"

    @pytest.mark.parametrize(
        "said",
        [
            {"description": "half of a pair: \ud800"},
            {"created": 2**70},
            {"created": True},
            {"fee": 10**30},
            {"nested": json.loads("[" * 400 + "]" * 400)},
        ],
        ids=["surrogate", "late", "true", "large", "deep"],
    )
    def test_it_takes_what_stripe_made_whatever_else_the_answer_says(
        self, services: Services, db: Connection, said: dict[str, Any]
    ) -> None:
        """Fails when an answer that has all that we use is put off for ever, since the rest of it can't be stored."""
        row = insert_row(db, Step.ASKED, run_id=None, tracking_state="none")
        made = replace(self.MADE, stripe_object={**self.MADE.stripe_object, **said})
        self.take(row, row.token, services, made=made)

        assert step_of(db, row) == Step.FINISHED

    @pytest.mark.parametrize("prefix", ["op_", "snapshot_", "unreadable_"])
    def test_no_event_of_an_app_stands_for_what_stripe_answered(self, prefix: str) -> None:
        """An app with a webhook secret of its own chooses the ids of its events; Stripe's begin with `evt_`."""
        forged = {"id": f"{prefix}1", "type": "payment_intent.created", "created": 1, "data": {"object": {"id": "pi"}}}

        with pytest.raises(NotAnEvent):
            parse_event(json.dumps(forged).encode())


class TestOtherOperation:
    """An operation about a payment that another one has created, as a refund is."""

    @pytest.mark.parametrize("step", [Step.ACCEPTED, Step.ASKED])
    @pytest.mark.parametrize("name", ["REFUSE", "ABANDON"])
    def test_its_end_says_nothing_of_the_payment(
        self, services: Services, db: Connection, name: str, step: Step
    ) -> None:
        """Fails when the payment is found by the operation's `payment_id`, and not by its id."""
        row = insert_row(db, step, of_its_payment=False, payment_status="succeeded")
        before = everything(db)[1]

        services.database.run(STATEMENTS[name].batch, **row.held_by(row.token), **STATEMENTS[name].values)

        assert everything(db)[1] == before

    def test_its_restart_does_not_reopen_a_rejected_payment(self, services: Services, db: Connection) -> None:
        row = insert_row(db, Step.FINISHED, of_its_payment=False, payment_status="rejected", **NO_ANSWER)
        before = everything(db)[1]

        assert services.database.run(accept._TAKE_OVER, **row.held_by(uuid.uuid4()), lease=LEASE)
        assert everything(db)[1] == before


class TestConstraints:
    @pytest.mark.parametrize(
        ("step", "change", "constraint"),
        [
            (Step.ACCEPTED, "kind = 'wish'", "ck_operations_known_kind"),
            (Step.ACCEPTED, "step = 'begun'", "ck_operations_known_step"),
            (Step.ACCEPTED, "tracking_state = 'lost'", "ck_operations_known_tracking_state"),
            (Step.ACCEPTED, "attempt = 0", "ck_operations_attempt_counts_from_one"),
            (Step.TAKEN, "answer = NULL", "ck_operations_answer_is_whole"),
            (Step.TAKEN, "answer_status = NULL", "ck_operations_answer_is_whole"),
            (Step.ACCEPTED, "step = 'asked', asked_at = now()", "ck_operations_asked_is_stamped"),
            (Step.ACCEPTED, "step = 'asked', stripe_params = '{}'", "ck_operations_asked_is_stamped"),
            (Step.TAKEN, "step = 'finished'", "ck_operations_unfinished_has_lease"),
            (Step.TAKEN, "lease_until = NULL", "ck_operations_unfinished_has_lease"),
            (Step.ACCEPTED, "payment_id = gen_random_uuid()", "fk_operations_payment_id_payments"),
        ],
    )
    def test_the_database_refuses_an_operation_that_cannot_be(
        self, db: Connection, step: Step, change: str, constraint: str
    ) -> None:
        insert_row(db, step)
        with pytest.raises(IntegrityError, match=constraint):
            db.execute(text(f"UPDATE operations SET {change}"))

    @pytest.mark.parametrize(
        ("change", "constraint"),
        [
            ("kind = 'wish'", "ck_payments_known_kind"),
            ("status = 'lost'", "ck_payments_known_status"),
            ("amount_received_in_cents = -1", "ck_payments_no_negative_amount"),
            ("amount_refunded_in_cents = -1", "ck_payments_no_negative_amount"),
            ("amount_disputed_in_cents = -1", "ck_payments_no_negative_amount"),
            ("stripe_payment_intent_id = NULL", "ck_payments_taken_has_stripe_object"),
        ],
    )
    def test_the_database_refuses_a_payment_that_cannot_be(self, db: Connection, change: str, constraint: str) -> None:
        insert_row(db, Step.TAKEN)
        with pytest.raises(IntegrityError, match=constraint):
            db.execute(text(f"UPDATE payments SET {change}"))

    def test_an_app_has_one_operation_for_an_idempotency_key(self, db: Connection) -> None:
        for app_id in ("shop", "other"):
            insert_row(db, Step.ACCEPTED, app_id=app_id)
        db.execute(text("UPDATE operations SET idempotency_key = 'once'"))
        row = insert_row(db, Step.ACCEPTED)
        with pytest.raises(IntegrityError, match="uq_operations_app_id_idempotency_key"):
            db.execute(text("UPDATE operations SET idempotency_key = 'once' WHERE id = :id"), {"id": row.id})


def request_of(kind: Kind[Any], body: dict[str, Any]) -> OperationRequest:
    schema = CheckoutCreateSchema() if kind is CREATE_CHECKOUT_SESSION else PaymentIntentCreateSchema()
    return OperationRequest(kind=kind, body=schema.load(body), idempotency_key="once")


def former_digest(kind: Kind[Any], body: dict[str, Any]) -> bytes:
    """As release 1.0 made it: of the validated body, in which its defaults stood."""
    return hashlib.sha256(kind.name.encode() + b"\n" + orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).digest()


ALIKE: dict[str, tuple[Kind[Any], list[dict[str, Any]]]] = {
    "intent": (
        CREATE_PAYMENT_INTENT,
        [
            intent(),
            intent(currency="usd"),
            intent(currency="USD"),
            intent(currency=None),
            intent(description=None, runId=None, metadata=None),
            intent(description="", brandId=""),
            intent(nobodyKnowsThis=1),
        ],
    ),
    "checkout": (
        CREATE_CHECKOUT_SESSION,
        [
            checkout(),
            checkout(mode="payment"),
            checkout(mode=None),
            checkout(discounts=None),
            checkout(discounts=[]),
            checkout(customerEmail=""),
            checkout(lineItems=[{"priceId": "price_sandbox", "quantity": 2, "nobodyKnowsThis": 1}]),
        ],
    ),
}
DIFFERENT: list[tuple[Kind[Any], dict[str, Any]]] = [
    (CREATE_PAYMENT_INTENT, intent()),
    (CREATE_PAYMENT_INTENT, intent(amountInCents=2001)),
    (CREATE_PAYMENT_INTENT, intent(currency="eur")),
    (CREATE_PAYMENT_INTENT, intent(orgId=...)),
    (CREATE_PAYMENT_INTENT, intent(appId="other")),
    (CREATE_PAYMENT_INTENT, intent(metadata={"currency": "usd"})),
    (CREATE_CHECKOUT_SESSION, checkout()),
    (CREATE_CHECKOUT_SESSION, checkout(mode="subscription")),
    (CREATE_CHECKOUT_SESSION, checkout(metadata={"mode": "payment"})),
    (CREATE_CHECKOUT_SESSION, checkout(discounts=[{"coupon": "C9"}])),
]


class TestOperationRequest:
    @pytest.mark.parametrize(("kind", "bodies"), ALIKE.values(), ids=ALIKE)
    def test_it_has_one_digest_with_a_default_sent_left_out_or_null(
        self, kind: Kind[Any], bodies: list[dict[str, Any]]
    ) -> None:
        """Fails when what is the default, or a field that we don't know, counts."""
        requests = [request_of(kind, body) for body in bodies]

        assert len({request.digest for request in requests}) == 1
        assert all(request.is_of(other.digest) for request, other in itertools.product(requests, repeat=2))

    def test_it_has_another_digest_for_another_request(self) -> None:
        requests = [request_of(kind, body) for kind, body in DIFFERENT]

        assert len({request.digest for request in requests}) == len(requests)
        assert not any(a.is_of(b.digest) for a, b in itertools.permutations(requests, 2))

    @pytest.mark.parametrize(("kind", "bodies"), ALIKE.values(), ids=ALIKE)
    def test_it_is_of_the_digest_that_release_1_0_made(self, kind: Kind[Any], bodies: list[dict[str, Any]]) -> None:
        """Fails when a caller's retry across the upgrade is taken for another request."""
        default = {"currency": "usd"} if kind is CREATE_PAYMENT_INTENT else {"mode": "payment"}
        former = former_digest(kind, {**request_of(kind, bodies[0]).body, **default})

        assert all(request_of(kind, body).is_of(former) for body in bodies)

    def test_it_is_not_of_the_digest_that_release_1_0_made_of_another_request(self) -> None:
        defaults = {CREATE_PAYMENT_INTENT.name: {"currency": "usd"}, CREATE_CHECKOUT_SESSION.name: {"mode": "payment"}}
        requests = [request_of(kind, body) for kind, body in DIFFERENT]
        former = [former_digest(each.kind, {**defaults[each.kind.name], **each.body}) for each in requests]

        assert [[request.is_of(digest) for digest in former] for request in requests] == [
            [row == column for column in range(len(requests))] for row in range(len(requests))
        ]

    @pytest.mark.parametrize(("path", "kind", "body"), [
        ("/payment-intent/create", CREATE_PAYMENT_INTENT, intent()),
        ("/checkout/create", CREATE_CHECKOUT_SESSION, checkout()),
    ])  # fmt: skip
    def test_a_retry_of_what_release_1_0_accepted_is_given_its_answer(
        self, client: FlaskClient, db: Connection, path: str, kind: Kind[Any], body: dict[str, Any]
    ) -> None:
        once = {"Idempotency-Key": "once"}
        first = client.post(path, json=body, headers=once)
        default = {"currency": "usd"} if kind is CREATE_PAYMENT_INTENT else {"mode": "payment"}
        former = former_digest(kind, {**request_of(kind, body).body, **default})
        db.execute(text("UPDATE operations SET request_hash = :former"), {"former": former})

        again = client.post(path, json=body | {"nobodyKnowsThis": 1}, headers=once)
        other = client.post(path, json=body | {"orgId": "org_2"}, headers=once)

        assert (again.status_code, again.json) == (200, first.json | {"ignoredFields": ["nobodyKnowsThis"]})
        assert (other.status_code, other.json["code"]) == (422, "idempotency_key_reused")
