"""Each rule of the catalog's requests, at its bounds and one past them."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.stand_ins import StandIns

PRODUCT, PRICE, COUPON = "/products/create", "/prices/create", "/coupons/create"
BODIES: dict[str, dict[str, Any]] = {
    PRODUCT: {"appId": "shop", "name": "Mug"},
    PRICE: {"appId": "shop", "productId": "prod_sandbox", "unitAmountInCents": 900},
    COUPON: {"appId": "shop", "percentOff": 10},
}
SHOWN = ["/products/prod_sandbox", "/prices/price_sandbox", "/prices/by-product/prod_sandbox", "/coupons/SUMMER"]

# The same in every process that collects these tests.
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
SOON, JUST_NOW = TODAY + timedelta(days=1, hours=1), TODAY - timedelta(seconds=1)
FAR_EAST, FAR_WEST = timezone(timedelta(hours=14)), timezone(-timedelta(hours=12))


def body(path: str, **changes: Any) -> dict[str, Any]:
    """A valid request; a change to `...` leaves the field out."""
    return {name: value for name, value in (BODIES[path] | changes).items() if value is not ...}


def metadata(count: int) -> dict[str, str]:
    return {f"key{number}": "v" for number in range(count)}


def amount_off(**changes: Any) -> dict[str, Any]:
    return body(COUPON, percentOff=..., amountOffInCents=500, currency="usd") | changes


ALL_VALID: list[tuple[str, Any]] = [
    ("appId", "a"),
    ("appId", "a" * 200),
    ("metadata", metadata(50)),
    ("metadata", {"k" * 40: "v" * 500}),
    ("metadata", {"k": "", "paymentId": "mine"}),
    ("metadata", {}),
    ("metadata", None),
    ("unheardOf", {"deep": [1]}),
]
ALL_INVALID: list[tuple[str, Any]] = [
    ("appId", ...),
    ("appId", None),
    ("appId", ""),
    ("appId", "a" * 201),
    ("appId", "..."),
    ("appId", "shop/1"),
    ("appId", "a\x00"),
    ("appId", 7),
    ("metadata", metadata(51)),
    ("metadata", {"k" * 41: "v"}),
    ("metadata", {"": "v"}),
    ("metadata", {"k[": "v"}),
    ("metadata", {"k\x00": "v"}),
    ("metadata", {"k": "v" * 501}),
    ("metadata", {"k": "v\x00"}),
    ("metadata", {"k": 1}),
    ("metadata", ["k"]),
]
NEW_ID_VALID: list[tuple[str, Any]] = [("id", "i"), ("id", "i" * 255), ("id", ".x"), ("id", None), ("id", "")]
NEW_ID_INVALID: list[tuple[str, Any]] = [
    ("id", "i" * 256),
    ("id", "."),
    ("id", ".."),
    ("id", "a/b"),
    ("id", "../prices"),
    ("id", "i\x00"),
    ("id", 7),
]
PRODUCT_VALID: list[tuple[str, Any]] = [
    ("name", "n"),
    ("name", "n" * 5000),
    ("description", "d" * 40_000),
    ("description", ""),
    ("description", None),
]
PRODUCT_INVALID: list[tuple[str, Any]] = [
    ("name", ...),
    ("name", None),
    ("name", ""),
    ("name", "n" * 5001),
    ("name", "n\x00"),
    ("name", 1),
    ("description", "d" * 40_001),
    ("description", "d\x00"),
    ("description", {}),
]
PRICE_VALID: list[tuple[str, Any]] = [
    ("unitAmountInCents", 1),
    ("unitAmountInCents", 99_999_999),
    ("currency", "EUR"),
    ("currency", None),
    ("recurring", None),
    ("recurring", {"interval": "day"}),
    ("recurring", {"interval": "week", "intervalCount": 2, "unheardOf": 1}),
    ("recurring", {"interval": "month", "intervalCount": None}),
    ("recurring", {"interval": "day", "intervalCount": 1095}),
]
PRICE_INVALID: list[tuple[str, Any]] = [
    ("productId", ...),
    ("productId", None),
    ("productId", ""),
    ("productId", "p" * 256),
    ("productId", "p\x00"),
    ("productId", 1),
    ("unitAmountInCents", ...),
    ("unitAmountInCents", None),
    ("unitAmountInCents", 0),
    ("unitAmountInCents", -1),
    ("unitAmountInCents", 100_000_000),
    ("unitAmountInCents", 9.0),
    ("unitAmountInCents", 9.5),
    ("unitAmountInCents", "9"),
    ("unitAmountInCents", True),
    ("currency", "us"),
    ("currency", "usdt"),
    ("currency", "usd\n"),
    ("currency", "us\x00"),
    ("currency", ""),
    ("currency", 840),
    ("recurring", {}),
    ("recurring", "month"),
    ("recurring", {"interval": "fortnight"}),
    ("recurring", {"interval": None}),
    ("recurring", {"interval": ["month"]}),
    ("recurring", {"interval": "month", "intervalCount": 0}),
    ("recurring", {"interval": "month", "intervalCount": 1096}),
    ("recurring", {"interval": "month", "intervalCount": 1.0}),
    ("recurring", {"interval": "month", "intervalCount": True}),
    ("recurring", {"interval": "month", "intervalCount": "1"}),
]
COUPON_VALID: list[tuple[str, Any]] = [
    ("name", "n" * 40),
    ("name", None),
    ("name", ""),
    ("percentOff", 1),
    ("percentOff", 12.5),
    ("percentOff", 100),
    ("amountOffInCents", None),
    ("currency", "usd"),
    ("duration", "once"),
    ("duration", "forever"),
    ("duration", None),
    ("durationInMonths", None),
    ("maxRedemptions", 1),
    ("maxRedemptions", 2**31 - 1),
    ("maxRedemptions", None),
    ("redeemBy", None),
]
COUPON_INVALID: list[tuple[str, Any]] = [
    ("name", "n" * 41),
    ("name", "n\x00"),
    ("name", 1),
    ("percentOff", 0),
    ("percentOff", 0.99),
    ("percentOff", 100.01),
    ("percentOff", 101),
    ("percentOff", -5),
    ("percentOff", "10"),
    ("percentOff", True),
    ("currency", "dollars"),
    ("duration", "twice"),
    ("duration", 1),
    ("maxRedemptions", 0),
    ("maxRedemptions", 2**31),
    ("maxRedemptions", 1.0),
    ("maxRedemptions", True),
    ("redeemBy", "tomorrow"),
    ("redeemBy", ""),
    ("redeemBy", 4_102_444_800),
    ("redeemBy", "4102444800"),
    ("redeemBy", "2030-13-01T00:00:00Z"),
    ("redeemBy", "2030-01-01+10:00"),
    ("redeemBy", "2030-01-01T00:00:00." + "1" * 44 + "Z"),
    ("redeemBy", "2030-01-01\x0010:00"),
    ("redeemBy", "2030-01-01T10:00:00Z\x00"),
    ("redeemBy", "2030-01-01T10:00:00 "),
    ("redeemBy", "\u0662\u0660\u0663\u0660-01-01"),
    ("redeemBy", "0001-01-01T00:00:00+23:59"),
    ("redeemBy", JUST_NOW.isoformat()),
    ("redeemBy", JUST_NOW.replace(tzinfo=None).isoformat()),
    ("redeemBy", JUST_NOW.astimezone(FAR_EAST).isoformat()),
]


def _cases(*, everywhere: Any, of_new_id: Any, of_product: Any, of_price: Any, of_coupon: Any) -> Any:
    of_path = {PRODUCT: of_new_id + of_product, PRICE: of_price, COUPON: of_new_id + of_coupon}
    rows = [(path, *case) for path, cases in of_path.items() for case in everywhere + cases]
    return pytest.mark.parametrize(("path", "field", "value"), rows)


def refused_fields(response: Any) -> list[str]:
    assert response.status_code == 400, response.json
    assert (response.json["error"], response.json["code"]) == ("Invalid request", "invalid_request")
    return list(response.json["details"]["fieldErrors"])


class TestCreateRules:
    @_cases(
        everywhere=ALL_VALID,
        of_new_id=NEW_ID_VALID,
        of_product=PRODUCT_VALID,
        of_price=PRICE_VALID,
        of_coupon=COUPON_VALID,
    )
    def test_it_creates_when_a_field_is_within_its_bounds(
        self, client: FlaskClient, stand_ins: StandIns, path: str, field: str, value: Any
    ) -> None:
        response = client.post(path, json=body(path, **{field: value}))

        assert response.status_code == 200, response.json
        assert response.json["success"] is True

    @_cases(
        everywhere=ALL_INVALID,
        of_new_id=NEW_ID_INVALID,
        of_product=PRODUCT_INVALID,
        of_price=PRICE_INVALID,
        of_coupon=COUPON_INVALID,
    )
    def test_it_asks_nobody_when_a_field_breaks_its_rule(
        self, client: FlaskClient, stand_ins: StandIns, path: str, field: str, value: Any
    ) -> None:
        response = client.post(path, json=body(path, **{field: value}))

        assert refused_fields(response) == [field]
        assert all(response.json["details"]["fieldErrors"][field])
        assert stand_ins.ledger() == []

    def test_it_takes_a_product_id_of_255_characters(self, client: FlaskClient, stand_ins: StandIns) -> None:
        client.post(PRODUCT, json=body(PRODUCT, id="p" * 255))

        response = client.post(PRICE, json=body(PRICE, productId="p" * 255))

        assert (response.status_code, response.json["productId"]) == (200, "p" * 255)

    @pytest.mark.parametrize("path", BODIES)
    @pytest.mark.parametrize("sent", [b"", b"{", b"[]", b'{"appId": "\\ud800"}'])
    def test_it_refuses_a_body_that_is_no_json_object(
        self, client: FlaskClient, stand_ins: StandIns, path: str, sent: bytes
    ) -> None:
        response = client.post(path, data=sent, content_type="application/json")

        assert response.status_code == 400
        assert set(response.json["details"]) == {"fieldErrors", "formErrors"}
        assert stand_ins.ledger() == []

    @pytest.mark.parametrize("path", BODIES)
    def test_it_refuses_another_content_type(self, client: FlaskClient, stand_ins: StandIns, path: str) -> None:
        assert client.post(path, data="{}", content_type="text/plain").status_code == 415
        assert stand_ins.ledger() == []

    @pytest.mark.parametrize("path", BODIES)
    @pytest.mark.parametrize("key", ["", "a" * 256, "a b", "caf\u00e9"])
    def test_it_refuses_a_malformed_idempotency_key(
        self, client: FlaskClient, stand_ins: StandIns, path: str, key: str
    ) -> None:
        response = client.post(path, json=body(path), headers={"Idempotency-Key": key})

        assert refused_fields(response) == ["Idempotency-Key"]
        assert stand_ins.ledger() == []


class TestCouponRules:
    @pytest.mark.parametrize(
        "sent",
        [
            body(COUPON, percentOff=...),
            body(COUPON, percentOff=None, amountOffInCents=None),
            body(COUPON, amountOffInCents=500, currency="usd"),
        ],
        ids=["neither", "both null", "both"],
    )
    def test_it_refuses_all_but_exactly_one_discount(
        self, client: FlaskClient, stand_ins: StandIns, sent: dict[str, Any]
    ) -> None:
        response = client.post(COUPON, json=sent)

        assert refused_fields(response) == []
        assert "Exactly one" in response.json["details"]["formErrors"][0]
        assert stand_ins.ledger() == []

    @pytest.mark.parametrize("currency", [..., None])
    def test_it_refuses_an_amount_without_a_currency(
        self, client: FlaskClient, stand_ins: StandIns, currency: Any
    ) -> None:
        sent = {name: value for name, value in amount_off(currency=currency).items() if value is not ...}

        assert refused_fields(client.post(COUPON, json=sent)) == ["currency"]
        assert stand_ins.ledger() == []

    @pytest.mark.parametrize("amount", [1, 99_999_999])
    def test_it_takes_an_amount_within_its_bounds(self, client: FlaskClient, stand_ins: StandIns, amount: int) -> None:
        response = client.post(COUPON, json=amount_off(amountOffInCents=amount, currency="EUR"))

        assert response.status_code == 200, response.json
        assert (response.json["amountOffInCents"], response.json["currency"]) == (amount, "eur")

    @pytest.mark.parametrize("amount", [0, -1, 100_000_000, 5.0, "5", True])
    def test_it_refuses_an_amount_past_them(self, client: FlaskClient, stand_ins: StandIns, amount: Any) -> None:
        response = client.post(COUPON, json=amount_off(amountOffInCents=amount))

        assert refused_fields(response) == ["amountOffInCents"]
        assert stand_ins.ledger() == []

    @pytest.mark.parametrize("months", [1, 1200])
    def test_it_takes_months_with_repeating(self, client: FlaskClient, stand_ins: StandIns, months: int) -> None:
        response = client.post(COUPON, json=body(COUPON, duration="repeating", durationInMonths=months))

        assert (response.status_code, response.json["duration"]) == (200, "repeating")

    @pytest.mark.parametrize(
        ("duration", "months"),
        [
            ("repeating", ...),
            ("repeating", None),
            ("repeating", 0),
            ("repeating", 1201),
            ("repeating", 3.0),
            ("repeating", True),
            ("once", 3),
            ("forever", 3),
            (None, 3),
            (..., 3),
        ],
    )
    def test_it_refuses_months_without_repeating_and_repeating_without_months(
        self, client: FlaskClient, stand_ins: StandIns, duration: Any, months: Any
    ) -> None:
        response = client.post(COUPON, json=body(COUPON, duration=duration, durationInMonths=months))

        assert refused_fields(response) == ["durationInMonths"]
        assert stand_ins.ledger() == []

    @pytest.mark.parametrize(
        "written",
        [
            SOON.isoformat(),
            SOON.strftime("%Y-%m-%dT%H:%M:%SZ"),
            SOON.strftime("%Y-%m-%dT%H:%M:%S.250Z"),
            SOON.strftime("%Y-%m-%d %H:%M:%S"),
            SOON.strftime("%Y%m%dT%H%M%SZ"),
            SOON.astimezone(FAR_WEST).isoformat(),
            SOON.astimezone(FAR_EAST).isoformat(),
            SOON.astimezone(timezone(timedelta(hours=5, minutes=30))).strftime("%Y-%m-%dT%H:%M:%S%z"),
        ],
    )
    def test_it_reads_a_time_with_any_offset_and_without_one_in_utc(
        self, client: FlaskClient, stand_ins: StandIns, written: str
    ) -> None:
        response = client.post(COUPON, json=body(COUPON, redeemBy=written))

        assert response.status_code == 200, response.json
        (account,) = stand_ins.state()["accounts"].values()
        assert account["objects"]["coupon"][0]["redeem_by"] == int(SOON.timestamp())

    def test_it_reads_a_date_as_its_beginning_in_utc(self, client: FlaskClient, stand_ins: StandIns) -> None:
        day = (TODAY + timedelta(days=2)).date()

        client.post(COUPON, json=body(COUPON, redeemBy=day.isoformat()))

        (account,) = stand_ins.state()["accounts"].values()
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        assert account["objects"]["coupon"][0]["redeem_by"] == int(midnight.timestamp())

    def test_it_leaves_the_latest_time_to_stripe(self, client: FlaskClient, stand_ins: StandIns) -> None:
        response = client.post(COUPON, json=body(COUPON, redeemBy="9999-12-31T23:59:59-23:59"))

        assert response.status_code == 400
        assert "5 years" in response.json["error"]


class TestShowRules:
    @pytest.mark.parametrize("path", SHOWN)
    @pytest.mark.parametrize(
        "query", ["", "?appId=", "?appId=..", "?appId=a%2Fb", "?appId=" + "a" * 201, "?appId=a%00"]
    )
    def test_it_asks_nobody_when_the_app_breaks_its_rule(
        self, client: FlaskClient, stand_ins: StandIns, path: str, query: str
    ) -> None:
        assert refused_fields(client.get(path + query)) == ["appId"]
        assert stand_ins.ledger() == []

    @pytest.mark.parametrize("path", SHOWN[:3])
    def test_it_ignores_what_it_does_not_know(self, client: FlaskClient, stand_ins: StandIns, path: str) -> None:
        assert client.get(path + "?appId=shop&unheardOf=1").status_code == 200


class TestIgnoredFields:
    @pytest.mark.parametrize("path", BODIES)
    def test_a_create_names_what_it_does_not_know(self, client: FlaskClient, path: str) -> None:
        response = client.post(path, json=body(path, unheardOf=1))

        assert (response.status_code, response.json["ignoredFields"]) == (200, ["unheardOf"])

    def test_it_names_what_is_nested(self, client: FlaskClient) -> None:
        response = client.post(PRICE, json=body(PRICE, recurring={"interval": "week", "every": 2}))

        assert response.json["ignoredFields"] == ["recurring.every"]
