"""The stand-in of Stripe where customers come back: their methods, and charges while they are away."""

from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Sandbox

CHARGE = {
    "amount": 500,
    "currency": "usd",
    "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
    "confirm": True,
    "off_session": True,
}
DEFAULT = "default_payment_method"


@pytest.fixture
def client(sandbox: Sandbox) -> Any:
    return sandbox.client()


def saved(client: Any, name: str = "pm_card_visa", **customer: Any) -> tuple[str, str]:
    """A customer with a method: both ids."""
    customer_id = client.v1.customers.create(customer).id
    return customer_id, client.v1.payment_methods.attach(name, {"customer": customer_id}).id


def charge(client: Any, customer: str, method: str, **changes: Any) -> Any:
    return client.v1.payment_intents.create({**CHARGE, "customer": customer, "payment_method": method, **changes})


def decline_of(call: Any, *arguments: Any) -> Any:
    with pytest.raises(stripe.CardError) as decline:
        call(*arguments)
    assert decline.value.http_status == 402
    return decline.value.error


def newest_events(client: Any, count: int) -> list[Any]:
    """The account's newest events, oldest first."""
    return list(reversed(client.v1.events.list({"limit": count}).data))


def newest_types(client: Any, count: int) -> list[str]:
    return [event.type for event in newest_events(client, count)]


def refusal_of(call: Any, *arguments: Any, **options: Any) -> stripe.InvalidRequestError:
    with pytest.raises(stripe.InvalidRequestError) as refusal:
        call(*arguments, **options)
    return refusal.value


class TestCustomers:
    def test_nothing_of_them_is_unique_and_they_are_listed_by_email_and_time(self, client: Any) -> None:
        first, second = (client.v1.customers.create({"email": "a@example.com", "metadata": {"n": n}}) for n in "12")
        client.v1.customers.create({"email": "b@example.com"})

        found = client.v1.customers.list({"email": "a@example.com", "created": {"gte": first.created}, "limit": 1})

        assert [each.id for each in found.auto_paging_iter()] == [second.id, first.id]
        assert client.v1.customers.list({"created": {"gte": second.created + 60}}).data == []
        assert refusal_of(client.v1.customers.create, {"email": "nobody"}).code == "email_invalid"

    def test_a_change_tells_what_was_before_and_a_default_has_to_be_the_customers(self, client: Any) -> None:
        customer, method = saved(client, email="a@example.com", metadata={"a": "1", "b": "2"})
        client.v1.customers.update(customer, {"email": "b@example.com", "metadata": {"a": "", "c": "3"}})
        (event,) = newest_events(client, 1)
        assert event.data.previous_attributes.to_dict() == {
            "email": "a@example.com",
            "metadata": {"a": "1", "b": "2"},
        }
        changed = client.v1.customers.update(customer, {"invoice_settings": {DEFAULT: method}})
        assert changed.invoice_settings.default_payment_method == method
        assert changed.metadata.to_dict() == {"b": "2", "c": "3"}

        other, _ = saved(client)
        refusal = refusal_of(client.v1.customers.update, other, {"invoice_settings": {DEFAULT: method}})
        assert (refusal.code, refusal.param) == ("resource_missing", f"invoice_settings[{DEFAULT}]")

    def test_a_deleted_one_is_shown_and_can_no_longer_be_used(self, client: Any) -> None:
        customer, method = saved(client)
        assert client.v1.customers.delete(customer).deleted

        shown = client.v1.customers.retrieve(customer).to_dict()
        assert shown == {"id": customer, "object": "customer", "deleted": True}
        assert client.v1.customers.list().data == []
        assert client.v1.payment_methods.retrieve(method).customer is None
        assert newest_types(client, 2) == ["payment_method.detached", "customer.deleted"]
        used = refusal_of(charge, client, customer, "pm_card_visa")
        assert (used.http_status, used.code, used.param) == (400, "resource_missing", "customer")
        for call in (client.v1.customers.delete, client.v1.customers.update):
            assert (refusal_of(call, customer).http_status, used.code) == (404, "resource_missing")


class TestPaymentMethods:
    def test_they_are_listed_in_pages_by_customer_and_type(self, client: Any) -> None:
        customer, visa = saved(client)
        names = ("pm_card_mastercard", "pm_link", "pm_card_in", "pm_usBankAccount_success")
        others = [client.v1.payment_methods.attach(name, {"customer": customer}).id for name in names]
        mastercard, _, indian, _ = others
        saved(client)

        listed = client.v1.customers.payment_methods.list(customer, {"limit": 2})
        assert [each.id for each in listed.auto_paging_iter()] == [*others[::-1], visa]
        cards = client.v1.payment_methods.list({"customer": customer, "type": "card"}).data
        assert [(each.id, each.card.brand, each.card.country) for each in cards] == [
            (indian, "visa", "IN"),
            (mastercard, "mastercard", "US"),
            (visa, "visa", "US"),
        ]
        assert refusal_of(client.v1.payment_methods.list, {"customer": "cus_1"}).code == "resource_missing"

    def test_a_detached_one_tells_whose_it_was_and_is_no_default_and_of_no_use(self, client: Any) -> None:
        customer, method = saved(client)
        client.v1.customers.update(customer, {"invoice_settings": {DEFAULT: method}})

        assert client.v1.payment_methods.detach(method).customer is None

        detached, updated = newest_events(client, 2)
        assert (detached.type, updated.type) == ("payment_method.detached", "customer.updated")
        assert detached.data.object["customer"] is None
        assert detached.data.previous_attributes.to_dict() == {"customer": customer}
        assert client.v1.customers.retrieve(customer).invoice_settings.default_payment_method is None
        assert "detachment is impossible" in str(refusal_of(client.v1.payment_methods.detach, method))
        assert "may not be used again" in str(
            refusal_of(client.v1.payment_methods.attach, method, {"customer": customer})
        )
        assert "may not be used again" in str(refusal_of(charge, client, customer, method))

    def test_a_card_that_is_declined_cant_be_saved_but_for_one(self, client: Any, sandbox: Sandbox) -> None:
        error = decline_of(saved, client, "pm_card_chargeDeclinedInsufficientFunds")
        assert (error.code, error.decline_code) == ("card_declined", "insufficient_funds")
        assert sandbox.ledger("stripe")[-1]["effect"] == "payment_method.attach"
        assert (
            decline_of(client.v1.customers.create, {"payment_method": "pm_card_chargeDeclined"}).code == "card_declined"
        )
        assert len(client.v1.customers.list().data) == 1
        assert saved(client, "pm_card_chargeCustomerFail")


class TestChargesWithoutTheCustomer:
    @pytest.mark.parametrize("name", ["pm_card_visa", "pm_link"])
    def test_they_succeed(self, client: Any, name: str) -> None:
        customer, method = saved(client, name)
        intent = charge(client, customer, method)
        assert (intent.status, intent.payment_method, intent.customer) == ("succeeded", method, customer)
        assert charge(client, customer, method).status == "succeeded"

    @pytest.mark.parametrize(
        ("name", "code", "decline_code"),
        [
            ("pm_card_chargeCustomerFail", "card_declined", "generic_decline"),
            ("pm_card_authenticationRequired", "authentication_required", "authentication_required"),
            ("pm_card_in", "card_declined", "transaction_not_allowed"),
        ],
    )
    def test_a_decline_leaves_an_intent_that_the_customer_can_confirm(
        self, client: Any, sandbox: Sandbox, name: str, code: str, decline_code: str
    ) -> None:
        customer, method = saved(client, name)
        error = decline_of(charge, client, customer, method)

        assert (error.code, error.decline_code) == (code, decline_code)
        assert (error.payment_intent.status, error.payment_method.id) == ("requires_payment_method", method)
        assert newest_types(client, 2) == ["charge.failed", "payment_intent.payment_failed"]
        intent = client.v1.payment_intents.confirm(error.payment_intent.id, {"payment_method": "pm_card_visa"})
        assert intent.status == "succeeded"

    def test_the_bank_can_be_answered_on_the_page(self, client: Any, sandbox: Sandbox) -> None:
        customer, method = saved(client, "pm_card_authenticationRequired")
        intent_id = decline_of(charge, client, customer, method).payment_intent.id

        asked = client.v1.payment_intents.confirm(
            intent_id, {"payment_method": method, "return_url": "http://localhost:3000/back"}
        )
        paid = sandbox.call("POST", f"/intent/{intent_id}/pay", allow_redirects=False)

        assert asked.status == "requires_action"
        assert asked.next_action.redirect_to_url.url == f"{sandbox.url}/intent/{intent_id}"
        assert paid.headers["Location"].startswith(f"http://localhost:3000/back?payment_intent={intent_id}&")
        assert client.v1.payment_intents.retrieve(intent_id).status == "succeeded"

    def test_a_method_behaves_from_now_on_as_it_is_told(self, client: Any, sandbox: Sandbox) -> None:
        customer, method = saved(client)
        sandbox.control(f"methods/{method}/behave", **{"as": "chargeDeclinedInsufficientFunds"})
        assert decline_of(charge, client, customer, method).decline_code == "insufficient_funds"

        sandbox.control(f"methods/{method}/take_days")
        intent = charge(client, customer, method)
        assert (intent.status, newest_types(client, 1)) == ("processing", ["payment_intent.processing"])
        assert sandbox.control(f"intents/{intent.id}/pay")["status"] == "succeeded"

        sandbox.control(f"methods/{method}/accept")
        assert charge(client, customer, method).status == "succeeded"

    def test_they_are_refused_with_a_method_that_isnt_the_customers(self, client: Any) -> None:
        customer, _ = saved(client)
        _, of_another = saved(client)
        refusals = [
            refusal_of(charge, client, customer, of_another),
            refusal_of(charge, client, customer, "pm_card_visa"),
            refusal_of(client.v1.payment_intents.create, {**CHARGE, "payment_method": of_another}),
            refusal_of(charge, client, customer, "pm_1"),
        ]
        assert [refusal.param for refusal in refusals] == ["payment_method"] * 4
        sentences = ("belongs to instead", "must be attached to the customer", "Please include the Customer", "No such")
        assert all(sentence in str(refusal) for sentence, refusal in zip(sentences, refusals, strict=True))
        assert client.v1.payment_intents.list().data == []

    def test_they_need_a_return_url_where_redirects_are_allowed(self, client: Any) -> None:
        customer, method = saved(client)
        automatic = {"automatic_payment_methods": {"enabled": True}}
        assert "`return_url`" in str(refusal_of(charge, client, customer, method, **automatic))
        assert client.v1.payment_intents.list().data == []
        assert charge(client, customer, method, return_url="http://localhost:3000", **automatic).status == "succeeded"

    def test_a_decline_is_kept_for_its_idempotency_key(self, client: Any, sandbox: Sandbox) -> None:
        customer, method = saved(client, "pm_card_chargeCustomerFail")
        wanted = {**CHARGE, "customer": customer, "payment_method": method}
        for _ in range(2):
            decline_of(client.v1.payment_intents.create, wanted, {"idempotency_key": "k"})
        assert len(client.v1.payment_intents.list().data) == 1
        entries = sandbox.ledger("stripe")[-3:-1]
        assert [(entry["effect"], entry["replayed"]) for entry in entries] == [
            ("payment_intent.create", False),
            (None, True),
        ]


class TestPaymentIntents:
    def test_a_method_is_saved_when_the_payment_for_it_succeeds(self, client: Any) -> None:
        customer = client.v1.customers.create({"email": "a@example.com"}).id
        intent = charge(
            client, customer, "pm_card_visa", off_session=False, setup_future_usage="off_session",
            receipt_email="a@example.com", statement_descriptor_suffix="ORDER 7",
        )  # fmt: skip
        assert client.v1.payment_methods.retrieve(intent.payment_method).customer == customer
        assert (intent.receipt_email, intent.statement_descriptor_suffix) == ("a@example.com", "ORDER 7")
        for name, text in (("receipt_email", "nobody"), ("statement_descriptor_suffix", "a*b")):
            assert refusal_of(charge, client, customer, intent.payment_method, **{name: text}).param == name

    def test_another_account_knows_neither_the_customer_nor_the_method(self, sandbox: Sandbox) -> None:
        customer, method = saved(sandbox.client("sk_test_one"))
        other = sandbox.client("sk_test_two")
        for call, identifier in ((other.v1.customers.retrieve, customer), (other.v1.payment_methods.retrieve, method)):
            refusal = refusal_of(call, identifier)
            assert (refusal.http_status, refusal.code) == (404, "resource_missing")
