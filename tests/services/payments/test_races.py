"""Money actions at once, over HTTP to two processes: Stripe decides, and every caller hears what it has decided."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from sqlalchemy import Connection, text

from tests.books import objects_of
from tests.conftest import environment_of
from tests.services.payments.conftest import APP_AND_ORG, CREATE_INTENT, Actor, Json, Payer, state_of
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import WebProcess

THREADS = 50
PAIRS = 6
UNEXPECTED = "payment_intent_unexpected_state"


@pytest.fixture(scope="module")
def two_processes(database_url: str, stand_ins_process: StandIns) -> Iterator[WebProcess]:
    """The service in two processes, for all tests of this module: each begins with an empty database all the same."""
    environment = environment_of(database_url, stand_ins_process)
    with WebProcess.start(environment | {"WEB_CONCURRENCY": "2"}) as process:
        yield process


@pytest.fixture
def racer(two_processes: WebProcess, actor: Actor) -> "Racer":
    return Racer(two_processes, actor)


class Racer:
    """Callers of two processes, whose payments an actor makes."""

    def __init__(self, web: WebProcess, actor: Actor) -> None:
        self.web, self.actor = web, actor

    def act(self, payment: Json, action: str, key: str, **body: object) -> requests.Response:
        path = f"/payments/{payment['paymentId']}/{action}"
        return self.web.post_until_answered(path, {"appId": "shop", **body}, key)

    def refunds(self, payment: Json, keys: list[str], amount: int) -> list[requests.Response]:
        """Refunds of the same amount at once, a thread for each key."""
        with ThreadPoolExecutor(len(keys)) as threads:
            refund = functools.partial(self.act, payment, "refund", amountInCents=amount)
            return list(threads.map(refund, keys))

    def at_once(self, *calls: Callable[[], requests.Response]) -> list[requests.Response]:
        with ThreadPoolExecutor(len(calls)) as threads:
            return [future.result() for future in [threads.submit(call) for call in calls]]

    def while_stripe_is_slow(
        self,
        path: str,
        slow: Callable[[], requests.Response],
        meanwhile: Callable[[], requests.Response],
        *,
        executed: bool,
    ) -> list[requests.Response]:
        """What two hear, when the second one comes while Stripe has the first one's request.

        :param executed: whether Stripe has executed that by then
        """
        stand_ins = self.actor.stand_ins
        stand_ins.fault("stripe", "delay", seconds=0.5, path=path, executed=executed)
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(slow)
            wait_until(lambda: not stand_ins.faults(), seconds=10, what="the first one's request")
            second = meanwhile()
            return [first.result(), second]


def at_stripe(stand_ins: StandIns, path: str) -> requests.Response:
    """What somebody does at Stripe, whether or not that is possible now."""
    return requests.post(f"{stand_ins.url}/_sandbox/{path}", json={}, timeout=30)


def codes(answers: list[requests.Response]) -> Counter[str]:
    return Counter("done" if answer.ok else str(answer.json()["code"]) for answer in answers)


def states(shown: Json) -> Counter[str]:
    return Counter(action["state"] for action in shown["actions"])


class TestRefunds:
    def test_one_key_is_one_refund(self, racer: Racer, stand_ins: StandIns, db: Connection) -> None:
        """Fails when `ACCEPT` inserts without ON CONFLICT, or `_continue` doesn't ask whether the lease lapsed."""
        payment = racer.actor.intent("pay")
        stand_ins.fault("stripe", "delay", seconds=0.3, path="/v1/refunds")

        answers = racer.refunds(payment, ["once"] * THREADS, 500)

        assert codes(answers) == {"done": THREADS}
        assert all(answer.json() == answers[0].json() for answer in answers)
        assert [entry["path"] for entry in stand_ins.ledger("stripe")].count("/v1/refunds") == 1
        assert db.execute(text("SELECT count(*) FROM operations WHERE kind = 'refund'")).scalar_one() == 1

    @pytest.mark.parametrize("is_locked", [False, True])
    def test_as_many_are_made_as_there_is_money_for(self, racer: Racer, stand_ins: StandIns, is_locked: bool) -> None:
        payment = racer.actor.intent("pay", amountInCents=5_000)
        racer.actor.hear()
        if is_locked:
            stand_ins.fault("stripe", "locked", method="POST", path="/v1/refunds", every=2, times=0)

        answers = racer.refunds(payment, [f"refund-{number}" for number in range(THREADS)], 100)
        one_more = racer.act(payment, "refund", "one-more", amountInCents=100)

        assert codes(answers) == {"done": THREADS}
        assert (one_more.status_code, one_more.json()["code"]) == (400, "charge_already_refunded")
        assert "has already been refunded" in one_more.json()["error"]
        assert stand_ins.effects().count("refund.create") == THREADS
        shown = racer.actor.status(payment)
        assert state_of(shown) == ("refunded", 5_000, 5_000, 5_000)
        assert states(shown) == {"done": THREADS, "refused": 1}

    def test_no_more_is_given_back_than_was_received(self, racer: Racer, stand_ins: StandIns) -> None:
        payment = racer.actor.intent("pay")
        answers = racer.refunds(payment, [f"refund-{number}" for number in range(20)], 600)

        assert codes(answers) == {"done": 3, "amount_too_large": 17}
        assert stand_ins.effects().count("refund.create") == 3
        racer.actor.hear()
        assert state_of(racer.actor.status(payment)) == ("partially_refunded", 2_000, 1_800, 1_800)

    @pytest.mark.parametrize(("executed", "told", "refunded"), [(True, "done", 2_000), (False, "charge_disputed", 0)])
    def test_a_dispute_comes_before_one_or_after_it(
        self, racer: Racer, stand_ins: StandIns, executed: bool, told: str, refunded: int
    ) -> None:
        payment = racer.actor.intent("pay")
        racer.actor.hear()

        def dispute() -> requests.Response:
            answer = at_stripe(stand_ins, f"charges/{payment['paymentIntentId']}/dispute")
            racer.actor.hear()
            return answer

        refund = functools.partial(racer.act, payment, "refund", "key")
        answers = racer.while_stripe_is_slow("/v1/refunds", refund, dispute, executed=executed)

        assert codes(answers[:1]) == {told: 1}
        for _ in range(2):
            shown = racer.actor.status(payment)
            assert state_of(shown)[:3] == ("disputed", 2_000, refunded)
            assert states(shown) == {"done" if executed else "refused": 1}
            racer.actor.hear()


class TestCharges:
    @pytest.mark.parametrize("more", [{}, {"invoice": True, "description": "Credit"}], ids=["plain", "invoice"])
    @pytest.mark.parametrize(("behaves", "status"), [("visa", 200), ("chargeCustomerFail", 402)])
    def test_one_key_is_one_charge(
        self, racer: Racer, payer: Payer, stand_ins: StandIns, behaves: str, status: int, more: Json
    ) -> None:
        payer.save(behaves=behaves)
        stand_ins.fault("stripe", "delay", method="POST", seconds=0.3)
        body = {**APP_AND_ORG, "amountInCents": 2000, "offSession": True, **more}
        charge = functools.partial(racer.web.post_until_answered, CREATE_INTENT, body, "once")

        answers = racer.at_once(*[charge] * 20)

        assert [answer.status_code for answer in answers] == [status] * 20
        told = [answer.json() | {"requestId": None} for answer in answers]
        assert all(each == told[0] for each in told)
        assert len(objects_of(stand_ins, "charge")) == 1
        assert payer.invoices() == ([] if not more else ["paid"] if status == 200 else ["void"])
        assert payer.stats()["totalPayments"] == 1


class TestCaptureBesideCancel:
    @pytest.mark.parametrize("executed", [True, False])
    @pytest.mark.parametrize(("slow", "quick"), [("capture", "cancel"), ("cancel", "capture")])
    def test_the_one_that_stripe_executes_first_is_done(
        self, racer: Racer, stand_ins: StandIns, slow: str, quick: str, executed: bool
    ) -> None:
        payment = racer.actor.intent("authorize", captureMethod="manual")
        answers = racer.while_stripe_is_slow(
            f"/{slow}$",
            functools.partial(racer.act, payment, slow, "a"),
            functools.partial(racer.act, payment, quick, "b"),
            executed=executed,
        )

        done = slow if executed else quick
        assert [answer.status_code for answer in answers] == ([200, 400] if executed else [400, 200])
        assert codes(answers) == {"done": 1, UNEXPECTED: 1}
        for _ in range(2):
            expected = ("succeeded", 2_000, 0, 0) if done == "capture" else ("canceled", 0, 0, 0)
            assert state_of(racer.actor.status(payment)) == expected
            racer.actor.hear()

    def test_one_of_them_is_done_whoever_comes_first(self, racer: Racer) -> None:
        payments = [racer.actor.intent("authorize", captureMethod="manual") for _ in range(PAIRS)]
        calls = [
            functools.partial(racer.act, payment, action, f"{action}-{number}")
            for number, payment in enumerate(payments)
            for action in ("capture", "cancel")
        ]
        answers = racer.at_once(*calls)
        racer.actor.hear()

        for payment, captured, canceled in zip(payments, answers[::2], answers[1::2], strict=True):
            assert codes([captured, canceled]) == {"done": 1, UNEXPECTED: 1}
            told = (captured if captured.ok else canceled).json()["status"]
            assert racer.actor.status(payment)["payment"]["status"] == told


class TestCancelBesidePaying:
    @pytest.mark.parametrize("executed", [True, False])
    @pytest.mark.parametrize(
        ("kind", "end", "received"), [("checkout", "expired", 4_000), ("intents", "canceled", 2_000)]
    )
    def test_it_is_paid_or_ends(
        self, racer: Racer, stand_ins: StandIns, kind: str, end: str, received: int, executed: bool
    ) -> None:
        payment = racer.actor.checkout() if kind == "checkout" else racer.actor.intent()
        stripe_id = payment.get("sessionId") or payment["paymentIntentId"]
        canceled, paid = racer.while_stripe_is_slow(
            "/(expire|cancel)$",
            functools.partial(racer.act, payment, "cancel", "key"),
            functools.partial(at_stripe, stand_ins, f"{kind}/{stripe_id}/pay"),
            executed=executed,
        )

        assert (canceled.status_code, paid.status_code) == ((200, 400) if executed else (400, 200))
        assert executed or "has a status of" in canceled.json()["error"]
        racer.actor.hear()
        shown = racer.actor.status(payment)
        assert state_of(shown) == ((end, 0, 0, 0) if executed else ("succeeded", received, 0, 0))
        assert states(shown) == {"done" if executed else "refused": 1}
