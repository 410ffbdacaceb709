"""A payment that is made and followed on the docs page, and paid on the stand-ins' checkout page."""

from urllib.parse import urlsplit

from playwright.sync_api import expect

from app.sandbox.settings import SandboxSettings
from tests.browser.docs_page import DocsPage
from tests.browser.visitor import Visitor
from tests.factories import checkout
from tests.stand_ins import StandIns
from tests.waiting import wait_until
from tests.web import API_KEY, WebProcess

TRIED = [
    "/checkout/create",
    "/payment-intent/create",
    "/products/create",
    "/prices/create",
    "/coupons/create",
    "/stats",
]


class TestDocsPage:
    def test_it_shows_a_payment_from_its_making_to_its_end(
        self, visitor: Visitor, service: WebProcess, stand_ins: StandIns
    ) -> None:
        page = visitor.open(f"{service.url}/docs")
        docs = DocsPage(page)
        docs.authorize(API_KEY)
        visitor.photograph(page, "1-docs")
        thanks = f"{stand_ins.url}/paid/{{CHECKOUT_SESSION_ID}}"
        created = docs.execute("POST", "/checkout/create", checkout(successUrl=thanks, cancelUrl=f"{service.url}/"))
        visitor.photograph(docs.operation("POST", "/checkout/create"), "2-created")

        def status() -> str:
            shown = docs.execute("GET", "/status/{paymentId}", paymentId=created["paymentId"])
            return str(shown["payment"]["status"])

        assert status() == "checkout_created"

        checkout_page = visitor.open(created["url"])
        visitor.photograph(checkout_page, "3-checkout")
        checkout_page.get_by_role("button", name="Pay", exact=True).click()
        checkout_page.wait_for_url(f"{stand_ins.url}/paid/{created['sessionId']}**")
        expect(checkout_page.get_by_role("heading", name="Succeeded")).to_be_visible()
        checkout_page.goto(created["url"])
        expect(checkout_page.get_by_text("This checkout is complete and paid.")).to_be_visible()
        visitor.photograph(checkout_page, "4-paid")

        wait_until(lambda: status() == "succeeded", seconds=20, what="the webhook")
        visitor.photograph(docs.operation("GET", "/status/{paymentId}"), "5-succeeded")
        assert visitor.complaints == []

    def test_it_keeps_the_key_when_it_is_loaded_again(self, visitor: Visitor, service: WebProcess) -> None:
        docs = DocsPage(visitor.open(f"{service.url}/docs"))
        docs.authorize(API_KEY)

        docs.page.reload()

        assert docs.execute("GET", "/stats")

    def test_it_sends_the_key_of_the_sandbox_unless_another_was_typed(
        self, visitor: Visitor, environment: dict[str, str]
    ) -> None:
        known = SandboxSettings.service_api_key
        keys = environment | {"STRIPE_SERVICE_API_KEY": f"{known},{API_KEY}"}
        with WebProcess.start(keys, application="app.sandbox.service:create_service()") as sandbox:
            docs = DocsPage(visitor.open(f"{sandbox.url}/docs"))
            with docs.page.expect_request("**/stats") as first:
                docs.execute("GET", "/stats")
            assert first.value.headers["x-api-key"] == known

            docs.change_key(API_KEY)
            docs.page.goto(f"{sandbox.url}/docs")
            with docs.page.expect_request("**/stats") as second:
                docs.execute("GET", "/stats")
            assert second.value.headers["x-api-key"] == API_KEY

    def test_it_offers_examples_that_work(self, visitor: Visitor, service: WebProcess) -> None:
        docs = DocsPage(visitor.open(f"{service.url}/docs"))
        docs.authorize(API_KEY)

        for path in TRIED:
            assert docs.execute("POST", path)
        assert visitor.complaints == []

    def test_it_asks_nobody_else_when_it_is_not_opened_on_this_machine(
        self, visitor: Visitor, service: WebProcess
    ) -> None:
        """Swagger UI shows a badge, unless told not to, for which it sends the document's address to its makers."""
        page = visitor.open(f"http://docs.test:{urlsplit(service.url).port}/docs")

        expect(page.locator(".opblock").first).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert visitor.complaints == []
