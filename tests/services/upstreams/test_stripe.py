"""Stripe's client: any kind of object, the app's key, and what each answer is read as."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.errors import (
    NoStripeKey,
    ServiceError,
    StripeRateLimited,
    StripeRefusal,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from app.metrics import registry
from app.services.upstreams.call_context import CallContext, Deadline
from app.services.upstreams.keys import KeyClient
from app.services.upstreams.stripe import (
    CardDeclined,
    IdempotencyKeyExecuting,
    IdempotencyMismatch,
    NoSuchObject,
    ObjectExists,
    ReplayedFailure,
    Resource,
    Stripe,
    StripeKeyRefused,
    require_possible_id,
)
from tests.stand_ins import StandIns

KEY = "sk_test_sandbox_shop"
ANOTHER_OBJECT = "answered another object than was asked for"

NOT_COUPONS = pytest.mark.parametrize(
    "answer",
    [
        [1],
        {},
        {"object": "price", "name": "Summer"},
        {"object": ["coupon"], "name": "Summer"},
        {"object": "coupon"},
        {"object": "coupon", "name": 7},
    ],
    ids=str,
)


def read_name(answer: Mapping[str, Any]) -> str:
    if not isinstance(answer["name"], str):
        raise ValueError("not a name")
    return str(answer["name"])


COUPONS = Resource("/v1/coupons", "coupon", read_name)
RAW_COUPONS: Resource[dict[str, Any]] = Resource("/v1/coupons", "coupon", dict)
SESSIONS: Resource[dict[str, Any]] = Resource("/v1/checkout/sessions", "checkout.session", dict)


def context(seconds: float = 5) -> CallContext:
    return CallContext("POST", "/coupons/create", "request-1", Deadline.after(seconds))


def coupon(coupon_id: str = "SUMMER", **changes: Any) -> dict[str, Any]:
    return {"id": coupon_id, "name": coupon_id.title(), "percent_off": 10, **changes}


@pytest.fixture
def stripe(stand_ins: StandIns) -> Stripe:
    keys = KeyClient(
        url=stand_ins.environment["KEY_SERVICE_URL"],
        api_key=stand_ins.environment["KEY_SERVICE_API_KEY"],
        timeout_seconds=5,
        cache_seconds=60,
    )
    return Stripe(api_base=stand_ins.url, timeout_seconds=5, keys=keys)


@pytest.fixture
def create(stripe: Stripe) -> Callable[..., str]:
    """Create a coupon; what comes back is its name."""

    def create(params: Mapping[str, Any] | None = None, *, idempotency_key: str = "once", seconds: float = 5) -> str:
        asked = coupon() if params is None else params
        return stripe.create(COUPONS, "shop", asked, idempotency_key=idempotency_key, context=context(seconds))

    return create


@pytest.fixture
def five(create: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Five coupons, the newest of them C4; a page takes two."""
    monkeypatch.setattr("app.services.upstreams.stripe.PAGE_SIZE", 2)
    for number in range(5):
        params = coupon(f"C{number}", metadata={"paymentId": f"payment {number}"})
        create(params, idempotency_key=f"key {number}")


def calls(stand_ins: StandIns, method: str) -> list[str]:
    """The paths that Stripe was asked for so, in order."""
    return [entry["path"] for entry in stand_ins.ledger("stripe") if entry["method"] == method]


def counted(call: str, outcome: str = "ok") -> float:
    labels = {"upstream": "Stripe", "call": call, "outcome": outcome}
    return registry.get_sample_value("stripe_service_upstream_call_seconds_count", labels) or 0


class TestRequireKey:
    def test_it_asks_nothing_of_stripe(self, stripe: Stripe, stand_ins: StandIns) -> None:
        stripe.require_key("shop", context())

        assert [entry["service"] for entry in stand_ins.ledger()] == ["key-service"]

    def test_it_raises_when_the_app_has_none(self, stripe: Stripe, stand_ins: StandIns) -> None:
        stand_ins.control("keys", appId="shop", key=None)

        with pytest.raises(NoStripeKey):
            stripe.require_key("shop", context())


class TestCreate:
    def test_it_returns_what_was_read_of_the_object(self, create: Callable[..., str], stand_ins: StandIns) -> None:
        assert create() == "Summer"
        assert calls(stand_ins, "POST") == ["/v1/coupons"]

    def test_it_makes_one_when_the_idempotency_key_is_repeated(
        self, create: Callable[..., str], stand_ins: StandIns
    ) -> None:
        params = {"name": "Any", "percent_off": 10}

        assert [create(params), create(params)] == ["Any", "Any"]
        assert stand_ins.effects() == ["coupon.create"]

    def test_it_raises_when_the_id_is_taken(self, create: Callable[..., str]) -> None:
        create()

        with pytest.raises(ObjectExists):
            create(idempotency_key="another")

    def test_it_raises_when_the_idempotency_key_is_known_with_other_parameters(
        self, create: Callable[..., str]
    ) -> None:
        create()

        with pytest.raises(IdempotencyMismatch):
            create(coupon(percent_off=20))

    def test_it_gives_stripes_words_when_stripe_refuses(self, create: Callable[..., str]) -> None:
        with pytest.raises(StripeRefusal, match="at most 100") as caught:
            create(coupon(percent_off=101))

        assert (caught.value.status, caught.value.code) == (400, "invalid_request")

    def test_it_cuts_keys_out_of_stripes_words(self, create: Callable[..., str], stand_ins: StandIns) -> None:
        error = {"type": "invalid_request_error", "message": f"No use for {KEY} " + "." * 1000}
        stand_ins.fault("stripe", "json", status=400, body={"error": error})

        with pytest.raises(StripeRefusal) as caught:
            create()

        assert caught.value.sentence.startswith("No use for [redacted]")
        assert len(caught.value.sentence) == 500

    @NOT_COUPONS
    def test_it_raises_when_the_answer_is_another_object(
        self, create: Callable[..., str], stand_ins: StandIns, answer: object
    ) -> None:
        stand_ins.fault("stripe", "json", body=answer)

        with pytest.raises(UpstreamError) as caught:
            create()

        assert caught.value.reason == ANOTHER_OBJECT

    @pytest.mark.parametrize("error", [AttributeError, KeyError, TypeError, ValueError])
    def test_it_raises_when_the_answer_can_not_be_read(
        self, stripe: Stripe, stand_ins: StandIns, error: type[Exception]
    ) -> None:
        def read(_: Mapping[str, Any]) -> str:
            raise error

        unreadable = Resource("/v1/coupons", "coupon", read)
        with pytest.raises(UpstreamError) as caught:
            stripe.create(unreadable, "shop", coupon(), idempotency_key="once", context=context())

        assert caught.value.reason == ANOTHER_OBJECT
        assert caught.value.executed is None

    def test_it_waits_no_longer_than_the_deadline(self, create: Callable[..., str], stand_ins: StandIns) -> None:
        stand_ins.fault("stripe", "hang")

        with pytest.raises(UpstreamTimeout):
            create(seconds=0.3)

    def test_it_is_not_repeated_when_its_answer_is_lost(self, create: Callable[..., str], stand_ins: StandIns) -> None:
        stand_ins.fault("stripe", "reset", executed=True)

        with pytest.raises(UpstreamUnavailable) as caught:
            create()

        assert caught.value.executed is None
        assert calls(stand_ins, "POST") == ["/v1/coupons"]

    def test_it_is_counted_by_its_path(self, create: Callable[..., str]) -> None:
        before = counted("POST /v1/coupons")
        create()

        assert counted("POST /v1/coupons") == before + 1


class TestFreshKey:
    @pytest.fixture
    def stale(self, stripe: Stripe, stand_ins: StandIns) -> None:
        """The app has a new key, and the client remembers the old one, which Stripe refuses."""
        stripe.require_key("shop", context())
        stand_ins.control("keys", appId="shop", key="sk_test_fresh")
        stand_ins.control("keys/revoke", key=KEY)

    @pytest.mark.usefixtures("stale")
    def test_it_asks_again_when_the_remembered_key_is_refused(
        self, create: Callable[..., str], stand_ins: StandIns
    ) -> None:
        assert create() == "Summer"
        assert calls(stand_ins, "POST") == ["/v1/coupons"] * 2

    @pytest.mark.usefixtures("stale")
    def test_it_gives_up_when_the_fresh_key_is_refused_too(
        self, create: Callable[..., str], stand_ins: StandIns
    ) -> None:
        stand_ins.control("keys/revoke", key="sk_test_fresh")

        with pytest.raises(StripeKeyRefused) as caught:
            create()

        assert caught.value.executed is False
        assert calls(stand_ins, "POST") == ["/v1/coupons"] * 2

    @pytest.mark.parametrize("status", [401, 403])
    def test_it_asks_once_when_there_is_no_other_key(
        self, create: Callable[..., str], stand_ins: StandIns, status: int
    ) -> None:
        stand_ins.fault("stripe", "status", status=status, times=0)

        with pytest.raises(StripeKeyRefused):
            create()

        assert calls(stand_ins, "POST") == ["/v1/coupons"]


IN_USE = {"error": {"type": "invalid_request_error", "code": "idempotency_key_in_use", "message": "Wait."}}


class TestErrors:
    @pytest.mark.parametrize(
        ("fault", "expected"),
        [
            ({"kind": "status", "status": 400}, StripeRefusal),
            ({"kind": "status", "status": 402}, CardDeclined),
            ({"kind": "status", "status": 409}, UpstreamUnavailable),
            ({"kind": "json", "status": 409, "body": IN_USE}, IdempotencyKeyExecuting),
            ({"kind": "status", "status": 429}, StripeRateLimited),
            ({"kind": "status", "status": 500}, UpstreamError),
            ({"kind": "status", "status": 500, "headers": {"Idempotent-Replayed": "true"}}, ReplayedFailure),
            ({"kind": "html", "status": 500, "headers": {"Idempotent-Replayed": "true"}}, ReplayedFailure),
            ({"kind": "status", "status": 503}, UpstreamUnavailable),
            ({"kind": "html"}, UpstreamError),
        ],
        ids=str,
    )
    def test_it_raises_an_error_of_ours_that_holds_none_of_the_sdks(
        self,
        create: Callable[..., str],
        stand_ins: StandIns,
        fault: dict[str, Any],
        expected: type[ServiceError],
    ) -> None:
        stand_ins.fault("stripe", **fault)

        with pytest.raises(ServiceError) as caught:
            create()

        assert type(caught.value) is expected
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None

    @pytest.mark.parametrize(
        ("told", "handed_on"),
        [("7", 7), ("3600", 3600), ("3601", 1), ("0", 1), ("-5", 1), ("1.5", 1), ("soon", 1), ("9" * 500, 1), ("", 1)],
    )
    @pytest.mark.parametrize("kind", ["status", "html"])
    def test_it_hands_on_when_to_ask_again_where_that_is_sane(
        self, create: Callable[..., str], stand_ins: StandIns, kind: str, told: str, handed_on: int
    ) -> None:
        stand_ins.fault("stripe", kind, status=429, headers={"Retry-After": told})

        with pytest.raises(StripeRateLimited) as caught:
            create()

        assert caught.value.retry_after_seconds == handed_on

    def test_it_leaves_out_when_to_ask_again_where_asking_again_does_not_help(
        self, create: Callable[..., str], stand_ins: StandIns
    ) -> None:
        stand_ins.fault("stripe", "status", status=400, headers={"Retry-After": "7"})

        with pytest.raises(StripeRefusal) as caught:
            create()

        assert caught.value.retry_after_seconds is None


class TestRetrieve:
    def test_it_returns_what_was_read_of_the_object(self, stripe: Stripe, create: Callable[..., str]) -> None:
        create()

        assert stripe.retrieve(COUPONS, "shop", "SUMMER", context()) == "Summer"

    def test_it_reads_the_whole_object_when_that_is_asked_for(self, stripe: Stripe, create: Callable[..., str]) -> None:
        create()

        found = stripe.retrieve(RAW_COUPONS, "shop", "SUMMER", context())
        assert (found["id"], found["object"], found["percent_off"]) == ("SUMMER", "coupon", 10)

    def test_it_raises_when_there_is_none(self, stripe: Stripe) -> None:
        with pytest.raises(NoSuchObject, match="No such coupon: 'WINTER'"):
            stripe.retrieve(COUPONS, "shop", "WINTER", context())

    def test_it_asks_for_one_segment_when_an_id_holds_what_a_url_does(
        self, stripe: Stripe, stand_ins: StandIns
    ) -> None:
        with pytest.raises(NoSuchObject):
            stripe.retrieve(COUPONS, "shop", "a?expand=x#y%2Fz ;", context())

        assert calls(stand_ins, "GET") == ["/v1/coupons/a?expand=x#y%2Fz ;"]

    @pytest.mark.parametrize("object_id", ["", ".", "..", "a/b", "/", "a\x00"])
    def test_it_asks_nothing_when_an_id_is_no_segment(
        self, stripe: Stripe, stand_ins: StandIns, object_id: str
    ) -> None:
        with pytest.raises(NoSuchObject):
            stripe.retrieve(COUPONS, "shop", object_id, context())

        assert stand_ins.ledger() == []

    @NOT_COUPONS
    def test_it_raises_when_the_answer_is_another_object(
        self, stripe: Stripe, stand_ins: StandIns, answer: object
    ) -> None:
        stand_ins.fault("stripe", "json", body=answer)

        with pytest.raises(UpstreamError) as caught:
            stripe.retrieve(COUPONS, "shop", "SUMMER", context())

        assert caught.value.reason == ANOTHER_OBJECT

    def test_it_is_counted_without_the_id_when_a_path_has_two_words(self, stripe: Stripe) -> None:
        call = "GET /v1/checkout/sessions/{id}"
        before = counted(call, "refused")
        with pytest.raises(NoSuchObject):
            stripe.retrieve(SESSIONS, "shop", "cs_1", context())

        assert counted(call, "refused") == before + 1


@pytest.mark.usefixtures("five")
class TestList:
    def test_it_gives_all_when_they_fill_several_pages(self, stripe: Stripe, stand_ins: StandIns) -> None:
        """Fails when a page is asked for by what was read of an object, which has no id here."""
        contexts: list[CallContext] = []

        def new_context() -> CallContext:
            contexts.append(context())
            return contexts[-1]

        listed = list(stripe.list(COUPONS, "shop", {}, new_context=new_context))

        assert listed == ["C4", "C3", "C2", "C1", "C0"]
        assert calls(stand_ins, "GET") == ["/v1/coupons"] * 3
        assert len(contexts) == 3

    def test_it_asks_for_a_page_only_when_that_is_needed(self, stripe: Stripe, stand_ins: StandIns) -> None:
        listed = stripe.list(COUPONS, "shop", {}, new_context=context)
        assert calls(stand_ins, "GET") == []

        assert [next(listed), next(listed)] == ["C4", "C3"]
        assert len(calls(stand_ins, "GET")) == 1

    def test_it_gives_none_when_no_object_passes_the_filters(self, stripe: Stripe) -> None:
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        filters = {"created": {"gte": int(tomorrow.timestamp())}}

        assert list(stripe.list(COUPONS, "shop", filters, new_context=context)) == []

    @NOT_COUPONS
    def test_it_raises_when_a_listed_object_is_another(
        self, stripe: Stripe, stand_ins: StandIns, answer: object
    ) -> None:
        listed = {**answer, "id": "SUMMER"} if isinstance(answer, dict) else answer
        stand_ins.fault("stripe", "json", body={"object": "list", "data": [listed], "has_more": False})

        with pytest.raises(UpstreamError) as caught:
            list(stripe.list(COUPONS, "shop", {}, new_context=context))

        assert caught.value.reason == ANOTHER_OBJECT

    @pytest.mark.parametrize(
        "page",
        [
            {"object": "coupon", "data": [], "has_more": False},
            {"object": "list", "data": [], "has": False},
            {"object": "list", "data": None, "has_more": False},
            {"object": "list", "data": [{"object": "coupon", "name": "No id"}], "has_more": True},
            {"object": "list", "data": [{"object": "coupon", "name": "No id", "id": ""}], "has_more": True},
            {"object": "list", "data": [{"object": "coupon", "name": "No id", "id": 7}], "has_more": True},
        ],
        ids=str,
    )
    def test_it_raises_when_the_answer_is_no_page(
        self, stripe: Stripe, stand_ins: StandIns, page: dict[str, Any]
    ) -> None:
        stand_ins.fault("stripe", "json", body=page)

        with pytest.raises(UpstreamError) as caught:
            list(stripe.list(COUPONS, "shop", {}, new_context=context))

        assert caught.value.reason == ANOTHER_OBJECT

    def test_it_is_counted_by_its_path(self, stripe: Stripe) -> None:
        before = counted("GET /v1/coupons")
        list(stripe.list(COUPONS, "shop", {}, new_context=context))

        assert counted("GET /v1/coupons") == before + 3


@pytest.mark.usefixtures("five")
class TestFind:
    @pytest.fixture
    def find(self, stripe: Stripe) -> Callable[..., str | None]:
        def find(key: str, value: str, *, created_after: datetime | None = None) -> str | None:
            since = created_after or datetime.now(UTC) - timedelta(hours=1)
            made_since = {"created": {"gte": int(since.timestamp())}}
            return stripe.find(COUPONS, "shop", (key, value), made_since, new_context=context)

        return find

    def test_it_looks_on_the_following_pages_until_it_has_found_it(
        self, find: Callable[..., str | None], stand_ins: StandIns
    ) -> None:
        assert find("paymentId", "payment 2") == "C2"
        assert calls(stand_ins, "GET") == ["/v1/coupons"] * 2

    @pytest.mark.parametrize(
        ("key", "value"), [("paymentId", "payment"), ("payment", "payment 2"), ("paymentId", "payment 22")]
    )
    def test_it_finds_none_when_no_metadata_holds_exactly_that(
        self, find: Callable[..., str | None], key: str, value: str
    ) -> None:
        assert find(key, value) is None

    def test_it_finds_none_when_it_was_made_before_that_time(self, find: Callable[..., str | None]) -> None:
        assert find("paymentId", "payment 2", created_after=datetime.now(UTC) + timedelta(hours=1)) is None

    @pytest.mark.parametrize("metadata", [None, [], "payment 2", {"paymentId": ["payment 2"]}])
    def test_it_passes_over_an_object_when_its_metadata_is_odd(
        self, find: Callable[..., str | None], stand_ins: StandIns, metadata: object
    ) -> None:
        odd = {"object": "coupon", "id": "ODD", "name": "Odd", "metadata": metadata}
        stand_ins.fault("stripe", "json", body={"object": "list", "data": [odd], "has_more": False})

        assert find("paymentId", "payment 2") is None

    def test_it_raises_when_what_it_finds_is_another_object(
        self, find: Callable[..., str | None], stand_ins: StandIns
    ) -> None:
        other = {"object": "price", "id": "price_1", "name": "Odd", "metadata": {"paymentId": "payment 2"}}
        stand_ins.fault("stripe", "json", body={"object": "list", "data": [other], "has_more": False})

        with pytest.raises(UpstreamError) as caught:
            find("paymentId", "payment 2")

        assert caught.value.reason == ANOTHER_OBJECT


class TestRequirePossibleId:
    @pytest.mark.parametrize("object_id", ["pi_1", "a b", "...a", "caf\u00e9", "%2F", "a\n", "a" * 255])
    def test_it_lets_through_what_can_be_one_segment(self, object_id: str) -> None:
        require_possible_id(object_id)

    @pytest.mark.parametrize("object_id", ["", ".", "...", "a/b", "a\x00b", "a" * 256])
    def test_it_raises_when_an_id_can_not_be_one(self, object_id: str) -> None:
        with pytest.raises(NoSuchObject) as caught:
            require_possible_id(object_id)

        assert (caught.value.status, caught.value.code) == (400, "resource_missing")
