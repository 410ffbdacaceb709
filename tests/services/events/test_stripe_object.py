"""The reader of Stripe's JSON: what each field says, and nothing that breaks it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.services.events.stripe_object import (
    cents_of,
    currency_of,
    dig,
    id_of,
    is_first_invoice,
    optional,
    references,
    required,
    subscription_of,
    text_of,
)

LONE_SURROGATE = "in_\ud800"
TEXTS = st.text(st.characters(codec=None, exclude_categories=())) | st.sampled_from(["", "a\x00", LONE_SURROGATE])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner))

KINDS = ["payment_intent", "checkout.session", "charge", "refund", "dispute", "invoice", "invoice_payment", "customer"]
FIELDS = ["id", "invoice", "payment_intent", "subscription", "charge", "payment", "parent", "billing_reason"]
OBJECTS = st.builds(
    lambda kind, fields: {"object": kind, **fields},
    st.sampled_from(KINDS) | JSON,
    st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from(["subscription_create", {"id": "pi_1"}])),
)

# A machine that is busy with other tests takes its time.
patient = settings(deadline=None)

NO_TEXTS: list[object] = [None, "", 0, 1, True, [], {}, b"a", "a\x00b", "\x00", LONE_SURROGATE]


class TestRequired:
    @patient
    @given(JSON.filter(lambda value: value is not None))
    @example(0)
    @example("")
    @example(False)
    def test_it_returns_what_was_read(self, value: object) -> None:
        assert required(value) is value

    def test_it_raises_when_nothing_was_read(self) -> None:
        with pytest.raises(ValueError, match="not readable"):
            required(None)


class TestOptional:
    def test_it_reads_what_is_there(self) -> None:
        assert optional(cents_of, 0) == 0

    def test_it_is_none_when_the_field_is_null(self) -> None:
        assert optional(cents_of, None) is None

    @pytest.mark.parametrize(
        ("read", "value"), [(cents_of, "5"), (cents_of, False), (text_of, ""), (id_of, {}), (currency_of, "dollar")]
    )
    def test_it_raises_when_the_field_holds_something_else(
        self, read: Callable[[object], object], value: object
    ) -> None:
        with pytest.raises(ValueError, match="not readable"):
            optional(read, value)


class TestTextOf:
    @pytest.mark.parametrize("value", ["a", " ", "caf\u00e9", "\U0001f600", "a" * 40_000])
    def test_it_returns_a_string_that_says_something(self, value: str) -> None:
        assert text_of(value) == value

    @pytest.mark.parametrize("value", NO_TEXTS)
    def test_it_is_none_when_the_value_is_no_text_that_can_be_stored(self, value: object) -> None:
        assert text_of(value) is None


class TestIdOf:
    @pytest.mark.parametrize("reference", ["pi_1", {"id": "pi_1", "object": "payment_intent"}])
    def test_it_returns_the_id_whether_the_object_is_expanded_or_not(self, reference: object) -> None:
        assert id_of(reference) == "pi_1"

    def test_it_takes_as_long_an_id_as_stripe_makes(self) -> None:
        assert id_of("a" * 255) == "a" * 255
        assert id_of("a" * 256) is None

    @pytest.mark.parametrize("value", NO_TEXTS)
    def test_it_is_none_when_there_is_no_id_that_can_be_stored(self, value: object) -> None:
        assert id_of(value) is None
        assert id_of({"id": value}) is None

    def test_it_looks_no_deeper_than_the_expanded_object(self) -> None:
        assert id_of({"id": {"id": "pi_1"}}) is None


class TestCurrencyOf:
    def test_it_returns_a_code_of_three_letters(self) -> None:
        assert currency_of("usd") == "usd"

    @pytest.mark.parametrize("value", [*NO_TEXTS, "us", "usdt", "us\x00", "us\ud800", ["u", "s", "d"]])
    def test_it_is_none_when_the_value_is_no_code(self, value: object) -> None:
        assert currency_of(value) is None


class TestCentsOf:
    @pytest.mark.parametrize("value", [0, 1, 2**53 - 1])
    def test_it_returns_a_whole_number(self, value: int) -> None:
        assert cents_of(value) == value

    @pytest.mark.parametrize("value", [None, -1, 2**53, 5.0, "5", True, False, [], {}])
    def test_it_is_none_when_the_value_is_no_amount(self, value: object) -> None:
        assert cents_of(value) is None


class TestDig:
    def test_it_returns_what_lies_at_the_path(self) -> None:
        assert dig({"a": {"b": [1]}}, "a", "b") == [1]
        assert dig({"a": 1}) == {"a": 1}

    @pytest.mark.parametrize("value", [None, [], "a", {}, {"a": None}, {"a": "b"}, {"a": {"c": 1}}])
    def test_it_is_none_when_the_path_ends_early(self, value: object) -> None:
        assert dig(value, "a", "b") is None


class TestIsFirstInvoice:
    @pytest.mark.parametrize(
        ("invoice", "is_first"),
        [
            ({"billing_reason": "subscription_create"}, True),
            ({"billing_reason": "subscription_cycle"}, False),
            ({"billing_reason": None}, False),
            ({}, False),
        ],
    )
    def test_it_tells_by_the_reason(self, invoice: dict[str, Any], is_first: bool) -> None:
        assert is_first_invoice(invoice) is is_first


NEWER = {"parent": {"subscription_details": {"subscription": "sub_new"}}}


class TestSubscriptionOf:
    @pytest.mark.parametrize(
        ("invoice", "subscription"),
        [
            (NEWER, "sub_new"),
            ({"subscription": "sub_old"}, "sub_old"),
            ({"subscription": {"id": "sub_old"}}, "sub_old"),
            ({"subscription": "sub_old", **NEWER}, "sub_new"),
            ({"subscription": "sub_old", "parent": None}, "sub_old"),
            ({"parent": {"subscription_details": None}}, None),
            ({}, None),
        ],
    )
    def test_it_looks_where_newer_versions_hold_it_and_then_where_older_ones_did(
        self, invoice: dict[str, Any], subscription: str | None
    ) -> None:
        assert subscription_of(invoice) == subscription


FIRST = {"billing_reason": "subscription_create"}
PAID_BY = {"type": "payment_intent", "payment_intent": "a"}


class TestReferences:
    @pytest.mark.parametrize(
        ("stripe_object", "found"),
        [
            ({"object": "payment_intent", "id": "z", "invoice": "a"}, ("z", "a")),
            (
                {"object": "checkout.session", "id": "z", "payment_intent": "y", "subscription": "x", "invoice": "w"},
                ("z", "y", "x", "w"),
            ),
            ({"object": "charge", "id": "z", "payment_intent": {"id": "a"}}, ("z", "a")),
            ({"object": "refund", "id": "z", "payment_intent": "a", "charge": "b"}, ("z", "b", "a")),
            ({"object": "dispute", "id": "z", "payment_intent": "a", "charge": "b"}, ("z", "b", "a")),
            ({"object": "invoice", "id": "z", "payment_intent": "y", "subscription": "x", **FIRST}, ("z", "y", "x")),
            ({"object": "invoice_payment", "id": "z", "invoice": "y", "payment": PAID_BY}, ("z", "y", "a")),
        ],
        ids=lambda value: value["object"] if isinstance(value, dict) else "",
    )
    def test_it_gives_the_objects_own_id_first_and_then_what_it_belongs_to(
        self, stripe_object: dict[str, Any], found: tuple[str, ...]
    ) -> None:
        assert references(stripe_object) == found

    def test_a_renewal_waits_for_its_subscription_and_is_not_found_by_it(self) -> None:
        renewal = {"object": "invoice", "id": "in_2", "subscription": "sub_1", "billing_reason": "subscription_cycle"}

        assert references(renewal) == ("in_2", "renewal:sub_1")
        assert references({**renewal, "amount_due": 0}) == ("in_2",)

    def test_it_gives_an_id_once_when_two_fields_hold_it(self) -> None:
        twice = {"object": "refund", "id": "re_1", "charge": "ch_1", "payment_intent": {"id": "ch_1"}}

        assert references(twice) == ("re_1", "ch_1")

    @pytest.mark.parametrize(
        "stripe_object", [{"object": "customer", "id": "cus_1"}, {"object": ["charge"], "id": "ch_1"}, {"id": "pi_1"}]
    )
    def test_it_gives_none_when_the_object_says_nothing_of_a_payment(self, stripe_object: dict[str, Any]) -> None:
        assert references(stripe_object) == ()


class TestAllReaders:
    """A genuine event holds an object, of which nothing else is certain."""

    @patient
    @given(JSON)
    def test_they_raise_nothing_and_give_what_can_be_stored_when_a_field_holds_anything(self, value: object) -> None:
        for text in (text_of(value), id_of(value), currency_of(value)):
            assert text is None or (text.encode() and "\x00" not in text)
        assert 0 <= (cents_of(value) or 0) < 2**53

    @patient
    @given(JSON, st.lists(TEXTS))
    def test_they_raise_nothing_when_the_path_is_any(self, value: object, path: list[str]) -> None:
        dig(value, *path)

    @patient
    @given(OBJECTS)
    def test_they_raise_nothing_when_an_object_holds_anything(self, stripe_object: dict[str, Any]) -> None:
        found = references(stripe_object)

        assert len(found) == len(set(found))
        assert all(0 < len(found_id) <= 255 for found_id in found)
        assert isinstance(is_first_invoice(stripe_object), bool)
        assert (subscription := subscription_of(stripe_object)) is None or id_of(subscription) == subscription

    @patient
    @given(OBJECTS)
    def test_they_begin_with_the_own_id_when_the_object_has_one(self, stripe_object: dict[str, Any]) -> None:
        own_id, found = id_of(stripe_object.get("id")), references(stripe_object)

        if found and own_id:
            assert found[0] == own_id
