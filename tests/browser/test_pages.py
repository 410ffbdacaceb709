"""Every page at a desk and on a phone: nothing is cut off, unlabelled or too pale, and no page is endless."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.docs_page import DocsPage
from tests.browser.visitor import Visitor
from tests.factories import checkout
from tests.stand_ins import StandIns
from tests.web import WebProcess

PAYMENTS = 200
SCREENS = 10
TABLES = ["checkout", "intents", "charges", "events", "runs"]
# The inputs, buttons and links that are shown and say nothing of what they are for.
NAMELESS = """
[...document.querySelectorAll("input:not([type=hidden]), button, a[href]")].filter(
  (each) => !(each.textContent.trim() || each.labels?.length || each.ariaLabel)).map((each) => each.outerHTML)
"""
# The texts whose contrast to what is behind them is below the 4.5 that WCAG 2.2 asks for in 1.4.3.
PALE = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const pixel = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (color) => pixel(color).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (each) => {
    while (each && pixel(getComputedStyle(each).backgroundColor)[3] === 0) each = each.parentElement;
    return each ? getComputedStyle(each).backgroundColor : "white";
  };
  const contrast = (each) => {
    const both = [luminance(getComputedStyle(each).color), luminance(behind(each))].sort((a, b) => b - a);
    return (both[0] + 0.05) / (both[1] + 0.05);
  };
  const said = [...document.body.querySelectorAll("*:not(:disabled)")].filter(
    (each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return said.filter((each) => contrast(each) < 4.5).map((each) => each.outerHTML.slice(0, 200));
})()
"""
# The ids in a table that take more than a line.
BROKEN = """
[...document.querySelectorAll("td.id > *")].filter(
  (each) => each.offsetHeight > 1.9 * parseFloat(getComputedStyle(each).fontSize)).map((each) => each.textContent)
"""


@pytest.fixture
def many_payments(stand_ins: StandIns) -> StandIns:
    """Stand-ins that have seen many payments, each of a run."""
    for number in range(PAYMENTS):
        made = stand_ins.session.post(
            f"{stand_ins.url}/v1/checkout/sessions",
            auth=("sk_test_sandbox_shop", ""),
            data={
                "mode": "payment",
                "line_items[0][price]": "price_sandbox",
                "line_items[0][quantity]": "1",
                "success_url": "http://127.0.0.1/",
                "metadata[orderId]": f"order-{number}",
            },
            timeout=10,
        ).json()
        stand_ins.control(f"checkout/{made['id']}/pay")
        stand_ins.new_run()
    return stand_ins


def assert_is_well_made(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert page.evaluate(PALE) == [], scheme
    page.emulate_media(color_scheme="light")
    assert page.evaluate(NAMELESS) == []
    assert_fits(page)


def assert_fits(page: Page) -> None:
    """Nothing is wider than the screen, and a person is at the end after ten screens at most."""
    assert_is_no_wider(page)
    assert page.viewport_size is not None
    assert page.evaluate("document.documentElement.scrollHeight") <= SCREENS * page.viewport_size["height"]


def assert_is_no_wider(page: Page) -> None:
    assert page.viewport_size is not None
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


class TestStandInsPage:
    def test_it_is_well_made_when_many_payments_were_made(
        self, sized_visitor: Visitor, many_payments: StandIns
    ) -> None:
        page = sized_visitor.open(many_payments.url)
        for table in TABLES:
            page.goto(f"{many_payments.url}/?table={table}")
            sized_visitor.photograph_whole(page, f"stand-ins-{table}")

            expect(page.get_by_text("Page 1 of")).to_be_visible()
            assert page.evaluate(BROKEN) == []
            assert_is_well_made(page)
        assert sized_visitor.complaints == []

    def test_it_leads_to_what_is_sought_by_filter_and_pages(
        self, sized_visitor: Visitor, many_payments: StandIns
    ) -> None:
        page = sized_visitor.open(f"{many_payments.url}/?table=checkout")
        page.get_by_role("link", name="Older").click()
        expect(page.get_by_text(f"Page 2 of 10, {PAYMENTS} in all")).to_be_visible()
        page.get_by_role("link", name="Charges").click()
        expect(page.get_by_role("heading", name="Charges")).to_be_visible()
        page.get_by_role("button", name="refund", exact=True).first.click()
        expect(page.get_by_role("heading", name="Charges")).to_be_visible()

        page.get_by_label("Only those with").fill("given back")
        page.keyboard.press("Enter")

        expect(page.get_by_text("Page 1 of 1, 1 in all")).to_be_visible()
        sized_visitor.photograph_whole(page, "stand-ins-filtered")


class TestCheckoutPage:
    def test_it_is_well_made_before_and_after_paying(
        self, sized_visitor: Visitor, service: WebProcess, stand_ins: StandIns
    ) -> None:
        thanks = f"{stand_ins.url}/paid/{{CHECKOUT_SESSION_ID}}"
        created = service.post("/checkout/create", checkout(successUrl=thanks)).json()
        page = sized_visitor.open(created["url"])
        sized_visitor.photograph_whole(page, "checkout")
        assert_is_well_made(page)
        page.get_by_role("button", name="Decline").click()
        expect(page.get_by_role("alert")).to_have_text("Your card was declined.")
        sized_visitor.photograph_whole(page, "declined")
        assert_is_well_made(page)

        page.get_by_role("button", name="Pay", exact=True).click()

        expect(page.get_by_role("heading", name="Succeeded")).to_be_visible()
        expect(page.get_by_text(created["paymentId"])).to_be_visible()
        sized_visitor.photograph_whole(page, "paid")
        assert_is_well_made(page)
        page.goto(created["url"])
        expect(page.get_by_text("complete and paid")).to_be_visible()
        assert_is_well_made(page)
        assert sized_visitor.complaints == []

    def test_the_page_after_paying_waits_until_the_service_has_heard(
        self, sized_visitor: Visitor, service: WebProcess, stand_ins: StandIns
    ) -> None:
        stand_ins.control("webhooks", mode="hold")
        thanks = f"{stand_ins.url}/paid/{{CHECKOUT_SESSION_ID}}"
        page = sized_visitor.open(service.post("/checkout/create", checkout(successUrl=thanks)).json()["url"])
        page.get_by_role("button", name="Pay", exact=True).click()
        expect(page.get_by_text("hasn't heard of the payment yet")).to_be_visible()
        sized_visitor.photograph_whole(page, "paid-waiting")

        stand_ins.control("webhooks", mode="deliver")
        stand_ins.control("webhooks/release")

        expect(page.get_by_role("heading", name="Succeeded")).to_be_visible()


class TestIntentPage:
    def test_it_is_well_made(self, sized_visitor: Visitor, stand_ins: StandIns) -> None:
        made = stand_ins.session.post(
            f"{stand_ins.url}/v1/payment_intents",
            auth=("sk_test_sandbox_shop", ""),
            data={"amount": "1999", "currency": "usd"},
            timeout=10,
        ).json()
        page = sized_visitor.open(f"{stand_ins.url}/intent/{made['id']}")
        sized_visitor.photograph_whole(page, "intent")
        assert_is_well_made(page)

        page.get_by_role("button", name="Pay", exact=True).click()

        expect(page.get_by_text("Status: succeeded")).to_be_visible()


class TestDocsPage:
    def test_it_fits_closed_and_with_a_route_that_is_tried(self, sized_visitor: Visitor, service: WebProcess) -> None:
        docs = DocsPage(sized_visitor.open(f"{service.url}/docs"))
        expect(docs.operation("POST", "/checkout/create")).to_be_visible()
        sized_visitor.photograph_whole(docs.page, "docs")
        assert_fits(docs.page)

        docs.authorize("caller-key")
        assert docs.execute("POST", "/checkout/create")

        sized_visitor.photograph_whole(docs.page, "docs-tried")
        assert_is_no_wider(docs.page)
        assert sized_visitor.complaints == []
