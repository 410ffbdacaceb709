"""What docs/privacy.md says is so: the fields that are left out, and the statements that erase."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services.events.stripe_event import PERSONAL_FIELDS, storable
from tests.factories import checkout, intent
from tests.webhooks import deliver, event, paid_intent

DOCUMENT = (Path(__file__).parents[1] / "docs" / "privacy.md").read_text()
_, ERASE_PERSONAL, ERASE_WRITTEN = (
    block.replace("'APP'", "'shop'").replace("'ORG'", "'org_1'")
    for block in re.findall(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL)
)
TOLD = {
    "billing_details": {"name": "Ada", "email": "ada@b.example", "address": {"city": "London"}},
    "last_payment_error": {
        "code": "card_declined",
        "payment_method": {"id": "pm_1", "card": {"last4": "4242"}, "billing_details": {"email": "ada@b.example"}},
    },
    "charges": {"data": [{"id": "ch_1", "customer": {"id": "cus_1", "email": "ada@b.example"}, "amount": 1}, []]},
    "receipt_email": "ada@b.example",
    "customer": {"deleted": True},
    "empty": {},
}
EVENTS = text("SELECT object, previous FROM stripe_events WHERE id LIKE 'evt_%'")


def state_of(client: FlaskClient, payment_id: str) -> dict[str, Any]:
    shown: dict[str, Any] = client.get(f"/status/{payment_id}").json
    del shown["payment"]["updatedAt"]
    return shown


class TestFields:
    def test_the_document_names_those_that_are_left_out(self) -> None:
        (listed,) = re.findall(r"```text\n(.*?)```", DOCUMENT, re.DOTALL)

        assert re.findall(r"\w+", listed) == list(PERSONAL_FIELDS)
        assert f"'{','.join(PERSONAL_FIELDS)}'" in ERASE_PERSONAL

    def test_an_event_is_stored_without_them(self, client: FlaskClient, db: Connection) -> None:
        told = event("payment_intent.succeeded", paid_intent("pi_1", **TOLD))
        told["data"]["previous_attributes"] = TOLD
        assert deliver(client, told).status_code == 200

        kept = {
            "last_payment_error": {"code": "card_declined", "payment_method": "pm_1"},
            "charges": {"data": [{"id": "ch_1", "customer": "cus_1", "amount": 1}, []]},
            "customer": None,
            "empty": {},
        }
        assert tuple(db.execute(EVENTS).one()) == (paid_intent("pi_1", **kept), kept)


class TestErase:
    @pytest.fixture
    def paid(self, client: FlaskClient) -> str:
        created = client.post("/payment-intent/create", json=intent(description="for Ada", metadata={"a": "1"})).json
        deliver(client, event("payment_intent.succeeded", paid_intent(created["paymentIntentId"])))
        return str(created["paymentId"])

    def test_it_takes_personal_fields_out_of_one_organisations_events_and_changes_no_payment(
        self, client: FlaskClient, db: Connection, paid: str
    ) -> None:
        """As a release stored them that left out nothing."""
        other = client.post("/payment-intent/create", json=intent(orgId="org_2")).json
        deliver(client, event("payment_intent.succeeded", paid_intent(other["paymentIntentId"])))
        as_before = "UPDATE stripe_events SET object = object || CAST(:told AS jsonb) WHERE id LIKE 'evt_%'"
        db.execute(text(as_before), {"told": json.dumps(TOLD)})
        (ours, _), (theirs, _) = sorted(
            db.execute(EVENTS), key=lambda row: row.object["id"] == other["paymentIntentId"]
        )
        before = state_of(client, paid)

        db.exec_driver_sql(ERASE_PERSONAL)

        stored = [row.object for row in db.execute(EVENTS)]
        assert sorted(stored, key=lambda shown: shown["id"] == theirs["id"]) == [storable(ours), theirs]
        replayed = client.application.test_cli_runner().invoke(args=["events", "replay", "--all"])
        assert replayed.output == "2 looked at\n"
        assert state_of(client, paid) == before

    def test_it_takes_out_what_callers_wrote_once_the_operation_is_finished(
        self, client: FlaskClient, db: Connection, paid: str
    ) -> None:
        client.post("/checkout/create", json=checkout(customerEmail="ada@b.example", metadata={"b": "Ada"}))

        db.exec_driver_sql(ERASE_WRITTEN)
        db.exec_driver_sql(ERASE_PERSONAL.replace(",tax_ids", ",tax_ids,description,metadata"))

        for table in ("payments", "operations", "stripe_events"):
            dump = db.execute(text(f"SELECT string_agg(t::text, '') FROM {table} t")).scalar_one()
            assert "Ada" not in dump
            assert "ada@b.example" not in dump
            assert b"ada@b.example".hex() not in dump
        assert state_of(client, paid)["payment"]["status"] == "succeeded"
