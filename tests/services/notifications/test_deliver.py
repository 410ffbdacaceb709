"""Delivery: in order for each payment, at least once, and nobody is delayed by another."""

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import svix.webhooks
from flask.testing import FlaskClient
from sqlalchemy import Connection, text
from standardwebhooks import Webhook, WebhookVerificationError

from app.services.notifications import deliver as delivery
from app.services.notifications.deliver import MAX_BODY_BYTES, MOST_TO_ONE, PAUSES, SENDERS, share
from tests.databases import WAITING
from tests.receivers import Receiver, Told
from tests.services.notifications.conftest import Shop
from tests.stand_ins import StandIns
from tests.waiting import wait_until

Listening = Callable[..., str]
VERIFIERS = {"standardwebhooks": Webhook, "svix": svix.webhooks.Webhook}


def verify(told: Told, secret: str) -> dict[str, Any]:
    return dict(Webhook(secret).verify(told.body, told.headers))


class TestSigning:
    @pytest.mark.parametrize("verifier", VERIFIERS.values(), ids=VERIFIERS)
    def test_libraries_verify_what_is_sent_and_nothing_else(
        self, shop: Shop, listening: Listening, endpoint: Receiver, verifier: Any
    ) -> None:
        endpoint_id = listening()
        shop.create()
        shop.tell()

        (told,) = endpoint.told
        webhook = verifier(shop.secrets[endpoint_id])
        webhook.verify(told.body, told.headers)
        for changed in (told.body.replace(b"2000", b"2001"), told.body + b" "):
            with pytest.raises((WebhookVerificationError, svix.webhooks.WebhookVerificationError)):
                webhook.verify(changed, told.headers)

    def test_it_shows_the_state_that_it_tells_as_status_shows_it(
        self, shop: Shop, listening: Listening, endpoint: Receiver, client: FlaskClient
    ) -> None:
        listening()
        created = shop.create()
        first = client.get(f"/status/{created['paymentId']}").json["payment"]
        shop.pay(created)
        shop.tell()

        shown = client.get(f"/status/{created['paymentId']}").json["payment"]
        made, paid = (told.event for told in endpoint.told)
        # Since Stripe's answer, the payment has been completed: that is no state of its own.
        assert made["data"]["payment"] == first
        assert paid["data"]["payment"] == shown
        assert paid["data"]["previous"] == {"status": "requires_payment_method", "amountReceivedInCents": 0}
        assert (paid["timestamp"], paid["id"]) == (shown["updatedAt"], endpoint.told[1].webhook_id)

    def test_two_secrets_sign_for_a_day_after_a_rotation(
        self, shop: Shop, listening: Listening, endpoint: Receiver, client: FlaskClient
    ) -> None:
        endpoint_id = listening()
        former = shop.secrets[endpoint_id]
        rotated = client.post(f"/event-endpoints/{endpoint_id}/rotate-secret", json={"appId": "shop"}).json
        shop.create()
        shop.tell()
        (told,) = endpoint.told
        assert verify(told, former) == verify(told, rotated["secret"])

        shop.db.execute(text("UPDATE event_endpoints SET old_secret_until = now()"))
        shop.create()
        shop.tell()
        verify(endpoint.told[1], rotated["secret"])
        with pytest.raises(WebhookVerificationError):
            verify(endpoint.told[1], former)

    def test_without_key_service_nothing_is_sent_and_no_try_is_counted(
        self, shop: Shop, listening: Listening, endpoint: Receiver, stand_ins: StandIns
    ) -> None:
        listening()
        shop.create()
        stand_ins.fault("key-service", "status", status=503, times=0)
        assert [each.error for each in shop.tell()] == ["key-service answered 503"]
        assert [(row.state, row.attempts) for row in shop.deliveries()] == [("waiting", 0)]
        assert shop.endpoints()[0]["failingSince"] is None

        stand_ins.heal()
        shop.make_due()
        shop.tell()
        assert endpoint.types() == ["created"]

    def test_no_secret_is_in_a_table_or_a_log(
        self, shop: Shop, listening: Listening, endpoint: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")
        endpoint_id = listening("/", "410")
        shop.create()
        shop.tell()
        secret = shop.secrets[endpoint_id].removeprefix("whsec_")
        for table in ("event_endpoints", "app_events", "deliveries"):
            assert secret not in str(shop.db.execute(text(f"SELECT * FROM {table}")).all())
        assert "is disabled" in caplog.text
        assert secret not in caplog.text

    def test_metadata_for_which_there_is_no_room_is_left_out(
        self, shop: Shop, listening: Listening, endpoint: Receiver, client: FlaskClient
    ) -> None:
        listening()
        body = {"appId": "shop", "amountInCents": 2000, "description": "\x01" * 1000, "orgId": "😀" * 200}
        metadata = {f"key-{number}": "é" * 500 for number in range(46)}
        assert client.post("/payment-intent/create", json={**body, "metadata": metadata}).status_code == 200
        shop.tell()

        (told,) = endpoint.told
        assert len(told.body) <= MAX_BODY_BYTES
        assert told.event["data"]["payment"]["metadata"] == {}
        assert told.event["data"]["payment"]["orgId"] == body["orgId"]


class TestOrder:
    def test_an_endpoint_is_told_of_one_payment_one_state_after_the_other(
        self, shop: Shop, listening: Listening, endpoint: Receiver
    ) -> None:
        """Fails when a claim doesn't look at what is ahead."""
        listening("/", "slow 0.05")
        payments = [shop.create() for _ in range(3)]
        for created in payments:
            shop.pay(created)
            for _ in range(3):
                shop.refund(created)
        shop.make_due()
        while any(row.state != "done" for row in shop.deliveries()):
            shop.tell()

        assert endpoint.most_at_once == 1
        for created in payments:
            told = [each.event for each in endpoint.told]
            own = [each for each in told if each["data"]["payment"]["id"] == created["paymentId"]]
            assert [each["data"]["payment"]["amountRefundedInCents"] for each in own] == [0, 0, 10, 20, 30]

    def test_what_failed_keeps_only_its_own_payment_waiting(
        self, shop: Shop, listening: Listening, endpoint: Receiver
    ) -> None:
        listening("/", "500", "200")
        failed, other = shop.create(), None
        shop.tell()
        shop.pay(failed)
        other = shop.create()
        shop.tell()
        assert [each.event["data"]["payment"]["id"] for each in endpoint.told] == [
            failed["paymentId"],
            other["paymentId"],
        ]

        shop.make_due()
        shop.tell()
        told = [each for each in endpoint.told if each.event["data"]["payment"]["id"] == failed["paymentId"]]
        assert [each.type for each in told] == ["payment.created", "payment.created", "payment.succeeded"]
        assert told[0].webhook_id == told[1].webhook_id != told[2].webhook_id
        assert told[0].body == told[1].body

    def test_a_dead_one_frees_the_next(self, shop: Shop, listening: Listening, endpoint: Receiver) -> None:
        """Fails when the end of one doesn't call the next."""
        listening("/", *["500"] * 10, "200")
        created = shop.create()
        shop.pay(created)
        for _ in range(10):
            # What is behind is far from its turn.
            first = "event_number = (SELECT min(number) FROM app_events)"
            due = f"now() + CASE WHEN {first} THEN interval '0' ELSE '1 day' END"
            shop.db.execute(text(f"UPDATE deliveries SET next_attempt_at = {due}"))
            shop.tell()

        assert endpoint.types() == [*["created"] * 10, "succeeded"]
        assert [(row.state, row.attempts) for row in shop.deliveries()] == [("dead", 10), ("done", 1)]

    def test_one_that_is_sent_again_waits_for_what_is_under_way(
        self, shop: Shop, listening: Listening, endpoint: Receiver, client: FlaskClient
    ) -> None:
        """Fails when a claim looks at earlier ones alone."""
        listening()
        created = shop.create()
        shop.tell()
        shop.pay(created)
        assert [claimed.event.type for claimed in delivery.claim(shop.services, [])] == ["payment.succeeded"]
        first = shop.deliveries()[0]
        assert client.post(f"/events/{first.id}/redeliver", json={"appId": "shop"}).status_code == 200

        assert delivery.claim(shop.services, []) == []
        shop.make_due()
        shop.tell()
        assert endpoint.types() == ["created", "created", "succeeded"]

    def test_two_workers_claim_what_the_other_has_not(self, shop: Shop, listening: Listening) -> None:
        listening()
        for _ in range(6):
            shop.pay(shop.create())
        claimed = [delivery.claim(shop.services, []) for _ in range(3)]
        numbers = [each.event.number for some in claimed for each in some]
        assert len(numbers) == len(set(numbers)) == 6


class TestTries:
    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            ("500", "answered 500"),
            ("302 Location: http://127.0.0.1:1/", "answered 302"),
            ("reset", "the connection broke"),
            ("hang", "no answer in time"),
            ("drip", "no answer in time"),
        ],
    )
    def test_it_tries_again_after_a_failure(
        self,
        shop: Shop,
        listening: Listening,
        endpoint: Receiver,
        monkeypatch: pytest.MonkeyPatch,
        answer: str,
        error: str,
    ) -> None:
        monkeypatch.setattr(delivery, "SEND_SECONDS", 1.0)
        listening("/", answer)
        shop.create()
        assert [each.error for each in shop.tell()] == [error]
        (row,) = shop.deliveries()
        assert (row.state, row.attempts, row.last_error) == ("waiting", 1, error)
        assert shop.endpoints()[0]["failingSince"] is not None

    def test_the_pauses_are_those_of_the_contract_a_fifth_more_or_less(
        self, shop: Shop, listening: Listening, endpoint: Receiver
    ) -> None:
        listening("/", "500")
        shop.create()
        waits = []
        left = text("SELECT extract(epoch FROM next_attempt_at - now()) FROM deliveries")
        for _ in range(9):
            shop.make_due()
            shop.tell()
            waits.append(float(shop.db.execute(left).scalar_one()))
        hour = 3600
        expected = [5, 300, 1800, 2 * hour, 5 * hour, 10 * hour, 14 * hour, 20 * hour, 24 * hour]
        assert [pause.total_seconds() for pause in PAUSES] == expected
        assert all(0.8 * pause - 5 < wait <= 1.2 * pause for wait, pause in zip(waits, expected, strict=True))

    def test_an_endless_answer_is_cut_off_and_taken(self, shop: Shop, listening: Listening, endpoint: Receiver) -> None:
        listening("/", "endless")
        shop.create()
        began_at = time.monotonic()
        assert [each.error for each in shop.tell()] == [None]
        assert time.monotonic() - began_at < 5

    def test_it_waits_as_long_as_the_endpoint_asks_and_sends_less(
        self, shop: Shop, listening: Listening, endpoint: Receiver
    ) -> None:
        """Fails when Retry-After holds back only what was answered so."""
        listening("/", "429 Retry-After: 3600", "200")
        shop.create()
        shop.tell()
        shop.create()
        shop.tell()

        assert len(endpoint.told) == 1
        left = "SELECT next_attempt_at - now(), paused_until - now(), concurrency FROM deliveries, event_endpoints"
        wait, pause, concurrency = shop.db.execute(text(f"{left} ORDER BY 1 DESC LIMIT 1")).one()
        assert timedelta(minutes=59) < min(wait, pause) <= timedelta(hours=1)
        assert concurrency == 2

    def test_one_that_is_gone_is_disabled_at_once(
        self, shop: Shop, listening: Listening, endpoint: Receiver, client: FlaskClient
    ) -> None:
        endpoint_id = listening("/", "410", "200")
        shop.create()
        assert [each.is_disabled for each in shop.tell()] == [True]
        shop.create()
        shop.make_due()
        assert shop.tell() == []
        assert shop.endpoints()[0]["state"] == "disabled"

        client.post(f"/event-endpoints/{endpoint_id}/enable", json={"appId": "shop"})
        shop.tell()
        assert endpoint.types() == ["created", "created"]
        assert len(shop.deliveries()) == 1

    @pytest.mark.parametrize(("days", "state"), [(4.9, "enabled"), (5.1, "disabled")])
    def test_one_that_has_failed_for_five_days_is_disabled_and_says_so(
        self, shop: Shop, listening: Listening, caplog: pytest.LogCaptureFixture, days: float, state: str
    ) -> None:
        endpoint_id = listening("/", "500")
        since = text("UPDATE event_endpoints SET failing_since = now() - :age")
        shop.db.execute(since, {"age": timedelta(days=days)})
        shop.create()
        shop.tell()
        assert shop.endpoints()[0]["state"] == state
        said = f"event endpoint {endpoint_id} is disabled: answered 500"
        assert (said in caplog.messages) == (state == "disabled")

    def test_one_whose_lease_has_ended_is_sent_again_under_the_same_id(
        self, shop: Shop, listening: Listening, endpoint: Receiver
    ) -> None:
        """Fails when a delivery that its worker died with is never claimed again."""
        listening()
        shop.create()
        (lost,) = delivery.claim(shop.services, [])
        assert shop.tell() == []
        shop.make_due()
        shop.tell()
        assert [each.webhook_id for each in endpoint.told] == [str(lost.event.event_id)]
        list(delivery._note([delivery.Tried(lost, 500, "late")], shop.services))
        assert [row.state for row in shop.deliveries()] == ["done"]


class TestNote:
    def test_one_that_takes_again_is_counted_trusted_and_sent_more(
        self, shop: Shop, listening: Listening, endpoint: Receiver, db: Connection
    ) -> None:
        listening("/", "500", "200")
        state = text("SELECT failing_since, concurrency, succeeded_count, failed_count FROM event_endpoints")
        shop.create()
        shop.tell()
        failing = db.execute(state).one()
        for _ in range(3):
            shop.create()
        shop.make_due()
        shop.tell()
        taking = db.execute(state).one()
        for _ in range(MOST_TO_ONE):
            shop.create()
        shop.tell()

        assert failing.failing_since is not None
        assert tuple(failing[1:]) == (2, 0, 1)
        assert tuple(taking) == (None, 2 + 4, 4, 1)
        assert tuple(db.execute(state).one()) == (None, MOST_TO_ONE, 4 + MOST_TO_ONE, 1)

    def test_who_has_lost_its_lease_notes_nothing(self, shop: Shop, listening: Listening) -> None:
        """Fails when a late answer ends what another worker has in hand."""
        listening()
        shop.create()
        (late,) = delivery.claim(shop.services, [])
        shop.make_due()
        (held,) = delivery.claim(shop.services, [])
        for tried in (delivery.Tried(late, 200), delivery.Tried(late, 500, "answered 500")):
            list(delivery._note([tried], shop.services))

        assert [(row.state, row.lease_token) for row in shop.deliveries()] == [("sending", held.token)]

    def test_what_can_not_be_noted_is_sent_again_and_hides_nothing_else(
        self, shop: Shop, listening: Listening, endpoint: Receiver
    ) -> None:
        """Fails when one lock that isn't to be had leaves others' tries unnoted."""
        held, free = listening("/held", "500"), listening("/free", "500")
        shop.create()
        with shop.db.engine.connect() as holding:
            holding.exec_driver_sql("BEGIN")
            holding.execute(text("SELECT 1 FROM event_endpoints WHERE id = :id FOR UPDATE"), {"id": held})
            errors = {str(each.claimed.endpoint_id): each.error for each in shop.tell()}
            holding.exec_driver_sql("ROLLBACK")

        assert errors == {held: "the database did not note it in time", free: "answered 500"}
        assert {str(row.endpoint_id): row.state for row in shop.deliveries()} == {held: "sending", free: "waiting"}
        shop.make_due()
        shop.tell()
        assert len({each.webhook_id for each in endpoint.told_at("/held")}) == 1
        assert len(endpoint.told_at("/held")) == 2

    def test_endpoints_are_locked_in_the_order_of_their_ids(self, shop: Shop, listening: Listening) -> None:
        """Fails when two workers that note what the same endpoints have taken can wait for each other."""
        small, *_, large = sorted(listening(f"/{number}") for number in range(8))
        shop.create()
        taken = [delivery.Tried(each, 200) for each in delivery.claim(shop.services, [])]
        assert len(taken) == 8
        lock = text("SELECT 1 FROM event_endpoints WHERE id = :id FOR UPDATE NOWAIT")
        with shop.db.engine.connect() as holding, ThreadPoolExecutor(1) as pool:
            holding.exec_driver_sql("BEGIN")
            holding.execute(lock, {"id": small})
            noting = pool.submit(list, delivery._note(list(reversed(taken)), shop.services))
            wait_until(lambda: shop.db.execute(WAITING).scalar_one(), seconds=2, what="the first lock")
            shop.db.execute(lock, {"id": large})
            holding.exec_driver_sql("ROLLBACK")
            assert [each.error for each in noting.result()] == [None] * 8


class TestFairness:
    def test_an_endpoint_that_hangs_delays_no_other(
        self, shop: Shop, listening: Listening, endpoint: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fails when one endpoint may have all senders."""
        monkeypatch.setattr(delivery, "SEND_SECONDS", 3.0)
        monkeypatch.setattr(delivery, "SENDERS", 12)
        monkeypatch.setattr(delivery, "WORTH_A_CLAIM", 3)
        listening("/hangs", "hang")
        for path in ("/a", "/b", "/c"):
            listening(path)
        for _ in range(30):
            shop.create()
        others = ("/a", "/b", "/c")
        with ThreadPoolExecutor(1) as worker:
            turn = worker.submit(shop.tell)
            # Before the first try of what hangs has ended.
            wait_until(
                lambda: all(len(endpoint.told_at(each)) == 30 for each in others), seconds=2.9, what="the others"
            )
            assert len(endpoint.told_at("/hangs")) <= MOST_TO_ONE
            shop.services.stop.set()
            assert {each.error for each in turn.result()} == {None, "no answer in time"}

    def test_no_endpoint_is_given_more_than_half_of_what_is_free(self) -> None:
        ids = [uuid.uuid4() for _ in range(4)]
        assert share({ids[0]: 100}, 64) == {ids[0]: 32}
        assert list(share(dict.fromkeys(ids, 100), 64).values()) == [16] * 4
        assert share({ids[0]: 0, ids[1]: 3}, 64) == {ids[1]: 3}
        assert len(share(dict.fromkeys(ids, 8), 2)) == 2

    def test_those_that_fail_have_half_of_the_senders(self, shop: Shop, listening: Listening) -> None:
        for number in range(5):
            listening(f"/{number}")
        shop.db.execute(text("UPDATE event_endpoints SET failing_since = now(), concurrency = 100"))
        for _ in range(SENDERS // 4):
            shop.create()
        assert len(delivery.claim(shop.services, [])) <= SENDERS // 2
