"""A customer's card, from the page on which it is saved to the one on which it is removed; and a checkout in a page."""

from typing import Any
from urllib.parse import quote

import requests
from playwright.sync_api import expect

from tests.browser.test_pages import assert_is_well_made
from tests.browser.visitor import Visitor
from tests.factories import checkout
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import API_KEY, WebProcess

ORG = {"appId": "shop", "orgId": "org_1"}
CHARGE = {**ORG, "amountInCents": 2000, "offSession": True}


def charge(service: WebProcess, key: str) -> Any:
    return service.post("/payment-intent/create", CHARGE, **{"Idempotency-Key": key})


class TestSavedCard:
    def test_it_is_saved_charged_without_the_customer_and_removed(
        self, sized_visitor: Visitor, service: WebProcess, stand_ins: StandIns
    ) -> None:
        addresses = {"successUrl": f"{stand_ins.url}/?saved", "cancelUrl": f"{stand_ins.url}/?not"}
        page = sized_visitor.open(service.post("/payment-methods/setup", {**ORG, **addresses}).json()["url"])
        sized_visitor.photograph_whole(page, "setup")
        assert_is_well_made(page)
        page.locator("button.primary").click()
        page.wait_for_url("**/?saved")

        charged = charge(service, "first")
        assert (charged.status_code, charged.json()["status"]) == (200, "succeeded")

        back = {"returnUrl": f"{stand_ins.url}/"}
        page.goto(service.post("/billing-portal/create", {**ORG, **back}).json()["url"])
        sized_visitor.photograph_whole(page, "portal")
        assert_is_well_made(page)
        page.get_by_role("button", name="Remove").click()
        expect(page.get_by_text("None is saved.")).to_be_visible()

        refused = charge(service, "second")
        assert (refused.status_code, refused.json()["code"]) == (400, "no_payment_method")
        assert sized_visitor.complaints == []


class TestEmbeddedCheckout:
    def test_it_is_paid_inside_of_an_apps_page(
        self, sized_visitor: Visitor, service: WebProcess, stand_ins: StandIns
    ) -> None:
        body = checkout(uiMode="embedded", redirectOnCompletion="never")
        created = service.post("/checkout/create", {k: v for k, v in body.items() if not k.endswith("Url")}).json()
        page = sized_visitor.open(f"{stand_ins.url}/embedded?client_secret={quote(created['clientSecret'])}")
        inside = page.frame_locator("iframe")
        expect(inside.get_by_role("button", name="Pay", exact=True)).to_be_visible()
        sized_visitor.photograph_whole(page, "embedded")
        inside.get_by_role("button", name="Pay", exact=True).click()
        expect(page.get_by_role("status")).to_have_text("Complete")

        def status() -> str:
            url = f"{service.url}/status/{created['paymentId']}"
            shown = requests.get(url, headers={"X-API-Key": API_KEY}, timeout=20).json()
            return str(shown["payment"]["status"])

        wait_until(lambda: status() == "succeeded", seconds=20, what="the webhook")
        assert sized_visitor.complaints == []
