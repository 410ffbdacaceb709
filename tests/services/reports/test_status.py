"""How the database finds what is asked for, where payments are many."""

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from tests.bench.plans import explain, reads_whole_table
from tests.factories import intent

COUNT = 5_000
OTHERS = (
    "INSERT INTO payments (id, kind, app_id, status)"
    f" SELECT gen_random_uuid(), 'payment_intent', 'shop', 'rejected' FROM generate_series(1, {COUNT})",
    "INSERT INTO operations (id, app_id, kind, payment_id, request_hash, request, step, lease_token, tracking_state)"
    " SELECT id, app_id, kind, id, '', '{}', 'finished', id, 'none' FROM payments WHERE status = 'rejected'",
    "INSERT INTO stripe_events (app_id, id, payment_id, type, created, object, refs)"
    " SELECT 'shop', 'evt_' || id, id, 'charge.updated', 1, '{}', ARRAY['ch_' || id] FROM payments",
    "INSERT INTO stripe_objects (id, app_id, payment_id) SELECT 'pi_' || id, 'shop', id FROM payments",
    "ANALYZE payments", "ANALYZE operations", "ANALYZE stripe_events", "ANALYZE stripe_objects",
)  # fmt: skip


class TestPlans:
    @pytest.fixture
    def payment_id(self, client: FlaskClient, db: Connection) -> str:
        made = client.post("/payment-intent/create", json=intent()).json
        for statement in OTHERS:
            db.execute(text(statement))
        return str(made["paymentId"])

    @pytest.mark.parametrize("known", [True, False])
    @pytest.mark.parametrize("path", ["/status/{}", "/status/by-stripe-id/ch_{}?appId=shop"])
    def test_one_payment_is_found_without_a_look_at_all(
        self, client: FlaskClient, services: Services, payment_id: str, path: str, known: bool
    ) -> None:
        """Fails when an object's payment is looked for with OR between the two ways to it."""
        asked = path.format(payment_id if known else "00000000-0000-4000-8000-000000000000")

        plans = explain(services.database.engine, lambda: client.get(asked))

        assert client.get(asked).status_code == (200 if known else 404)
        assert [plan for plan in plans if reads_whole_table(plan)] == []
        assert any("ix_" in plan or "pk_" in plan for plan in plans)
