"""The stand-in's subscriptions after their checkout, driven by Stripe's own SDK."""

from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Sandbox
from tests.sandbox.test_stripe import SUBSCRIPTION, event_types

KEY = "sk_test_one"


class Subscriber:
    """A subscription that was paid for on its page, and whoever looks at it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox, self.client = sandbox, sandbox.client(KEY)
        created = self.client.v1.checkout.sessions.create(SUBSCRIPTION)
        self.id = sandbox.control(f"checkout/{created.id}/pay")["subscription"]
        self.known = len(event_types(self.client))

    def act(self, action: str, **options: Any) -> dict[str, Any]:
        return self.sandbox.control(f"subscriptions/{self.id}/{action}", **options)

    def told(self) -> list[str]:
        """The types of the events since this was asked last."""
        types = event_types(self.client)
        new, self.known = types[self.known :], len(types)
        return new

    @property
    def shown(self) -> Any:
        return self.client.v1.subscriptions.retrieve(self.id)

    @property
    def last_change(self) -> Any:
        """What was changed last, as it was before."""
        events = self.client.v1.events.list({"type": "customer.subscription.updated"}).data
        return events[0].data.previous_attributes.to_dict()


@pytest.fixture
def subscriber(sandbox: Sandbox) -> Subscriber:
    return Subscriber(sandbox)


class TestRenew:
    def test_it_moves_the_period_of_the_items_and_takes_the_money(self, subscriber: Subscriber) -> None:
        before = subscriber.shown["items"]
        subscriber.act("renew")

        item = subscriber.shown["items"].data[0]
        assert item.current_period_start == before.data[0].current_period_end
        assert "current_period_start" not in subscriber.shown
        assert subscriber.last_change["items"]["data"][0]["current_period_start"] == before.data[0].current_period_start
        assert subscriber.told() == [
            "customer.subscription.updated",
            "invoice.created",
            "invoice.finalized",
            "payment_intent.created",
            "charge.succeeded",
            "charge.updated",
            "payment_intent.succeeded",
            "invoice.paid",
            "invoice.payment_succeeded",
            "invoice_payment.paid",
        ]

    def test_it_is_tried_again_until_it_is_paid(self, subscriber: Subscriber) -> None:
        subscriber.act("renew", fail=True)
        assert subscriber.last_change == {"status": "active"}
        assert subscriber.act("retry", fail=True)["status"] == "past_due"
        assert subscriber.act("retry")["status"] == "active"

        invoice = subscriber.client.v1.invoices.list({"subscription": subscriber.id}).data[0]
        assert (invoice.status, invoice.attempt_count, invoice.amount_paid) == ("paid", 3, 2000)
        assert subscriber.told().count("invoice.payment_failed") == 2

    def test_the_bank_may_ask_the_customer(self, subscriber: Subscriber) -> None:
        assert subscriber.act("renew", ask=True)["status"] == "past_due"
        assert subscriber.told()[-2:] == ["invoice.payment_action_required", "customer.subscription.updated"]
        assert subscriber.act("retry")["status"] == "active"

    def test_one_that_is_to_end_ends_with_its_period(self, subscriber: Subscriber) -> None:
        subscriber.client.v1.subscriptions.update(subscriber.id, {"cancel_at_period_end": True})
        ends_at = subscriber.shown["items"].data[0].current_period_end
        assert (subscriber.shown.cancel_at_period_end, subscriber.shown.cancel_at) == (True, ends_at)

        assert subscriber.act("renew")["status"] == "canceled"
        assert subscriber.told() == ["customer.subscription.updated", "customer.subscription.deleted"]

    def test_older_versions_show_the_period_and_the_intent_elsewhere(self, subscriber: Subscriber) -> None:
        subscriber.sandbox.control("accounts", key=KEY, oldShapes=True)
        subscriber.act("renew")

        events = {event.type: event.data.object for event in subscriber.client.v1.events.list({"limit": 9}).data}
        subscription, invoice = events["customer.subscription.updated"], events["invoice.paid"]
        assert subscription.current_period_end == subscriber.shown["items"].data[0].current_period_end
        assert "current_period_end" not in subscription["items"].data[0]
        assert (invoice.subscription, "parent" in invoice) == (subscriber.id, False)
        assert events["payment_intent.succeeded"].id == invoice.payment_intent
        assert "invoice_payment.paid" not in events


class TestUpdate:
    @pytest.fixture
    def dearer(self, subscriber: Subscriber) -> dict[str, str]:
        """The item at a price of 50.00 instead of 20.00."""
        terms = {"product": "prod_sandbox", "currency": "usd", "unit_amount": 5000, "recurring": {"interval": "month"}}
        price = subscriber.client.v1.prices.create(terms)
        return {"id": subscriber.shown["items"].data[0].id, "price": price.id}

    def test_the_difference_is_paid_at_once_or_with_the_next_period(
        self, subscriber: Subscriber, dearer: dict[str, str]
    ) -> None:
        update = subscriber.client.v1.subscriptions.update
        update(subscriber.id, {"items": [dearer], "proration_behavior": "always_invoice"})
        update(subscriber.id, {"items": [{"id": dearer["id"], "quantity": 2}]})
        subscriber.act("renew")

        invoices = subscriber.client.v1.invoices.list({"subscription": subscriber.id}).data
        assert [(invoice.billing_reason, round(invoice.amount_paid, -2)) for invoice in invoices] == [
            ("subscription_cycle", 15_000),
            ("subscription_update", 3000),
            ("subscription_create", 2000),
        ]

    def test_a_declined_one_changes_nothing(self, subscriber: Subscriber, dearer: dict[str, str]) -> None:
        subscriber.act("swap_card")
        changes = {"items": [dearer], "proration_behavior": "always_invoice"}
        before = subscriber.shown.to_dict()
        with pytest.raises(stripe.CardError):
            subscriber.client.v1.subscriptions.update(
                subscriber.id, {**changes, "payment_behavior": "error_if_incomplete"}
            )
        assert subscriber.shown.to_dict() == before

        assert subscriber.client.v1.subscriptions.update(subscriber.id, changes).status == "past_due"

    def test_one_that_has_ended_is_refused(self, subscriber: Subscriber) -> None:
        assert subscriber.client.v1.subscriptions.cancel(subscriber.id).status == "canceled"
        with pytest.raises(stripe.InvalidRequestError, match="canceled subscription"):
            subscriber.client.v1.subscriptions.update(subscriber.id, {"cancel_at_period_end": True})
        with pytest.raises(stripe.InvalidRequestError, match="No such subscription"):
            subscriber.client.v1.subscriptions.cancel(subscriber.id)


class TestResume:
    def test_it_goes_on_with_one_that_is_paused(self, subscriber: Subscriber) -> None:
        with pytest.raises(stripe.InvalidRequestError):
            subscriber.client.v1.subscriptions.resume(subscriber.id)
        subscriber.act("pause")
        assert subscriber.client.v1.subscriptions.resume(subscriber.id).status == "active"
        assert subscriber.told()[-2:] == ["customer.subscription.updated", "customer.subscription.resumed"]
