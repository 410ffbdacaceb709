"""Cancel, resume and change: what Stripe is asked, what shows at once, and kills in the middle."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from app.services import Services
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from tests.crashing import dies_in
from tests.services.events.test_renewals import MONTHLY, Subscriber
from tests.soak import amount
from tests.stand_ins import StandIns

Json = dict[str, Any]
KEY = {"Idempotency-Key": "once"}
MOST_POINTS = 80
STRIDE = amount(5, 1)


class Owner(Subscriber):
    """A subscriber whose app does something with the subscription."""

    def ask(self, action: str, *, client: FlaskClient | None = None, key: str = "", **body: Any) -> Any:
        headers = {"Idempotency-Key": key} if key else {}
        path = f"/subscriptions/{self.id}/{action}"
        return (client or self.client).post(path, json={"appId": "shop", **body}, headers=headers)

    def shown_now(self) -> Json:
        return dict(self.client.get(f"/subscriptions/{self.id}?appId=shop").json["subscription"])

    def dearer(self) -> str:
        """A price of 50.00 a month instead of 20.00."""
        recurring = {"interval": "month"}
        terms = {"appId": "shop", "productId": "prod_sandbox", "unitAmountInCents": 5000, "recurring": recurring}
        return str(self.client.post("/prices/create", json=terms).json["priceId"])


@pytest.fixture
def new_owner(client: FlaskClient, stand_ins: StandIns, services: Services) -> Callable[[], Owner]:
    def make() -> Owner:
        owner = Owner(client, stand_ins, services)
        known = ("checkout.session.completed", "customer.subscription.created", "customer.subscription.updated")
        owner.deliver([each for each in owner.told() if each["type"] in known])
        return owner

    return make


@pytest.fixture
def owner(new_owner: Callable[[], Owner]) -> Owner:
    return new_owner()


class TestCancel:
    def test_it_ends_with_its_period_and_may_be_resumed(self, owner: Owner) -> None:
        """What Stripe answered shows at once; its webhooks change nothing."""
        ends = owner.ask("cancel")
        assert (ends.status_code, ends.json["success"]) == (200, True)
        assert ends.json["subscription"] == owner.shown_now()
        assert owner.shown_now()["cancelAt"] == owner.shown_now()["currentPeriodEnd"]

        owner.deliver(owner.told())
        owner.stand_ins.control("clock", advance=5)
        goes_on = owner.ask("resume").json["subscription"]
        assert (goes_on["cancelAtPeriodEnd"], goes_on["cancelAt"], goes_on["status"]) == (False, None, "active")
        assert goes_on == owner.shown_now()
        owner.deliver(owner.told())
        assert goes_on == owner.shown_now()

    def test_it_ends_now_and_for_ever(self, owner: Owner) -> None:
        ended = owner.ask("cancel", atPeriodEnd=False).json["subscription"]
        assert (ended["status"], ended["endedAt"] is not None) == ("canceled", True)
        assert owner.ask("cancel", atPeriodEnd=False).json["subscription"] == ended
        refused = owner.ask("resume")
        assert (refused.status_code, "canceled subscription" in refused.json["error"]) == (400, True)
        owner.deliver(owner.told())
        assert owner.shown_now() == ended

    def test_another_app_finds_none(self, owner: Owner) -> None:
        for action in ("cancel", "resume", "change"):
            answer = owner.ask(action, appId="other", quantity=2)
            assert (answer.status_code, answer.json["error"]) == (404, "Subscription not found")

    def test_it_is_no_action_of_the_payment(self, owner: Owner) -> None:
        owner.ask("cancel")
        assert owner.client.get(f"/status/{owner.payment_id}").json["actions"] == []


class TestResume:
    def test_it_goes_on_with_one_that_is_paused(self, owner: Owner) -> None:
        owner.act("pause")
        assert owner.ask("resume").json["subscription"]["status"] == "active"
        assert owner.ask("resume").json["subscription"]["status"] == "active"


class TestChange:
    def test_it_changes_the_price_and_the_quantity(self, owner: Owner) -> None:
        price = owner.dearer()
        (item,) = owner.ask("change", priceId=price, quantity=3, proration="none").json["subscription"]["items"]
        assert (item["priceId"], item["quantity"], item["unitAmountInCents"]) == (price, 3, 5000)
        assert owner.shown_now()["items"] == [item]

    def test_a_declined_difference_is_402_and_changes_nothing(self, owner: Owner) -> None:
        owner.act("swap_card")
        before = owner.shown_now()
        declined = owner.ask("change", priceId=owner.dearer(), proration="always_invoice", key="k")
        assert (declined.status_code, declined.json["code"]) == (402, "card_declined")
        assert owner.shown_now() == before

    @pytest.mark.parametrize(
        ("body", "field"),
        [({}, "priceId"), ({"quantity": 1, "itemId": "si_x"}, "itemId"), ({"quantity": 0}, "quantity")],
    )
    def test_a_request_that_breaks_a_rule_is_400(self, owner: Owner, body: Json, field: str) -> None:
        answer = owner.ask("change", **body)
        assert (answer.status_code, list(answer.json["details"]["fieldErrors"])) == (400, [field])

    def test_one_of_several_items_has_to_be_named(
        self, client: FlaskClient, stand_ins: StandIns, services: Services
    ) -> None:
        owner = Owner(client, stand_ins, services, lineItems=[*MONTHLY, *MONTHLY])
        owner.deliver(owner.told())
        assert list(owner.ask("change", quantity=2).json["details"]["fieldErrors"]) == ["itemId"]
        named = owner.shown_now()["items"][1]["itemId"]
        changed = owner.ask("change", quantity=2, itemId=named).json["subscription"]["items"]
        assert [item["quantity"] for item in changed] == [1, 2]


SCENES: dict[str, tuple[str, Callable[[Owner], Json], Callable[[Owner], object]]] = {
    "cancel": ("cancel", lambda owner: {}, lambda owner: None),
    "cancel now": ("cancel", lambda owner: {"atPeriodEnd": False}, lambda owner: None),
    "resume": ("resume", lambda owner: {}, lambda owner: owner.act("pause")),
    "change": (
        "change",
        lambda owner: {"priceId": owner.dearer(), "proration": "always_invoice"},
        lambda owner: None,
    ),
}


class TestCrash:
    @pytest.mark.soak
    @pytest.mark.parametrize("name", SCENES)
    def test_it_is_done_once_wherever_a_process_is_killed(
        self, new_owner: Callable[[], Owner], dying: Flask, services: Services, db: Connection, name: str
    ) -> None:
        """Fails when the answer isn't folded with the step, or recovery asks under another key."""
        killed = list(self.sweep(new_owner, dying, name))
        db.execute(text("UPDATE operations SET lease_until = now() WHERE step <> 'finished'"))
        list(recover_operations(services, KINDS, command="flask recover", at_once=True))

        for owner, body in killed:
            answer = owner.ask(SCENES[name][0], key=owner.id, **body)
            assert (answer.status_code, answer.json["subscription"]) == (200, owner.shown_now())
            invoices = [each["data"]["object"]["parent"] for each in owner.told() if each["type"] == "invoice.created"]
            own = [each for each in invoices if each["subscription_details"]["subscription"] == owner.id]
            assert len(own) == 1 + (name == "change")
        assert db.execute(text("SELECT count(*) FROM operations WHERE step <> 'finished'")).scalar_one() == 0
        assert len(killed) >= 16 // STRIDE

    def sweep(self, new_owner: Callable[[], Owner], dying: Flask, name: str) -> Iterator[tuple[Owner, Json]]:
        action, body_of, prepare = SCENES[name]
        for point in range(list(SCENES).index(name), MOST_POINTS, STRIDE):
            owner = new_owner()
            prepare(owner)
            body = body_of(owner)

            def act(child: FlaskClient, owner: Owner = owner, body: Json = body) -> Any:
                return owner.ask(action, client=child, key=owner.id, **body)

            if not dies_in(dying, point, act):
                assert point >= 12
                return
            yield owner, body
        pytest.fail("an action has more points than this")
