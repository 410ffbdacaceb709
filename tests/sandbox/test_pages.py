"""The pages of the stand-ins: their tables, the checkout page, and where a customer comes back to."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest

from app.sandbox.tables import TABLES
from tests.sandbox import test_told_app as told_app
from tests.sandbox.conftest import Sandbox
from tests.sandbox.test_keys import HEADERS

SESSION = {
    "mode": "payment",
    "line_items": [{"price": "price_sandbox", "quantity": 2}],
    "success_url": "http://localhost:3000/ok?session={CHECKOUT_SESSION_ID}",
    "cancel_url": "http://localhost:3000/cancelled",
}
INTENT = {"amount": 500, "currency": "usd"}
PAYMENT = {
    "id": "p-1",
    "status": "succeeded",
    "amountInCents": 4000,
    "amountReceivedInCents": 4000,
    "amountRefundedInCents": 0,
    "currency": "usd",
    "appId": "shop",
    "orgId": None,
}


class TestCheckoutPage:
    def test_the_checkout_page_leads_the_customer_back(self, sandbox: Sandbox) -> None:
        client = sandbox.client()
        name = "<b>Mug</b>"
        line = {
            "price_data": {"currency": "usd", "unit_amount": 900, "product_data": {"name": name}},
            "quantity": 3,
        }
        session = client.v1.checkout.sessions.create({**SESSION, "line_items": [line]})
        page = f"/pay/{session.id}"

        shown = sandbox.call("GET", page).text
        assert "27.00 USD" in shown
        assert "&lt;b&gt;Mug&lt;/b&gt;" in shown
        assert sandbox.call("GET", f"{page}/pay").status_code == 405
        assert "Your card was declined." in sandbox.call("POST", f"{page}/decline").text
        cancelled = sandbox.call("POST", f"{page}/cancel", allow_redirects=False)
        assert cancelled.headers["Location"] == "http://localhost:3000/cancelled"
        paid = sandbox.call("POST", f"{page}/pay", allow_redirects=False)
        assert paid.headers["Location"] == f"http://localhost:3000/ok?session={session.id}"
        assert "complete and paid" in sandbox.call("GET", page).text


class TestTables:
    def test_they_offer_what_is_possible_now(self, sandbox: Sandbox) -> None:
        intent = sandbox.client().v1.payment_intents.create(INTENT)
        assert f"/actions/intents/{intent.id}/capture" not in sandbox.call("GET", "/").text

        after = sandbox.call("POST", f"/actions/intents/{intent.id}/authorize").text

        assert f"/actions/intents/{intent.id}/capture" in after
        assert f"/actions/intents/{intent.id}/pay" not in after

    def test_they_are_shown_in_pages_from_the_newest_to_the_oldest(self, sandbox: Sandbox) -> None:
        made = [sandbox.client().v1.payment_intents.create(INTENT).id for _ in range(45)]

        shown = [re.findall(r"/intent/(pi_\w+)", shown_at(sandbox, table="intents", page=page)) for page in (1, 2, 3)]

        assert [len(page) for page in shown] == [20, 20, 5]
        assert [found for page in shown for found in page] == made[::-1]

    @pytest.mark.parametrize(("page", "shown"), [("99", "Page 3 of 3"), ("-1", "Page 1 of 3"), ("x", "Page 1 of 3")])
    def test_they_show_the_nearest_page_when_there_is_no_such(self, sandbox: Sandbox, page: str, shown: str) -> None:
        for _ in range(45):
            sandbox.client().v1.payment_intents.create(INTENT)

        assert f"{shown}, 45 in all" in shown_at(sandbox, table="intents", page=page)

    @pytest.mark.parametrize("text", ["7.00 USD", "7.00 usd", "p-7", "CAPTURE"])
    def test_they_show_what_holds_the_text(self, sandbox: Sandbox, text: str) -> None:
        client = sandbox.client()
        other = client.v1.payment_intents.create(INTENT).id
        sought = client.v1.payment_intents.create({**INTENT, "amount": 700, "metadata": {"paymentId": "p-7"}}).id
        sandbox.control(f"intents/{sought}/authorize")

        shown = shown_at(sandbox, table="intents", q=text)

        assert sought in shown
        assert other not in shown

    def test_they_repeat_a_text_as_text(self, sandbox: Sandbox) -> None:
        shown = shown_at(sandbox, table="intents", q='"><b>')
        assert "<b>" not in shown
        assert "None holds" in shown

    def test_an_action_comes_back_to_the_page_it_was_done_on(self, sandbox: Sandbox) -> None:
        intent = sandbox.client().v1.payment_intents.create(INTENT)
        query = f"?table=intents&q={intent.id}&page=1"
        shown = sandbox.call("GET", f"/{query}").text
        path = f"/actions/intents/{intent.id}/pay{query}"
        assert path.replace("&", "&amp;") in shown

        assert sandbox.call("POST", path, allow_redirects=False).headers["Location"] == f"/{query}"

    @pytest.mark.parametrize("table", [table.name for table in TABLES])
    def test_each_shows_what_there_is(self, sandbox: Sandbox, table: str) -> None:
        recurring = {
            **SESSION,
            "mode": "subscription",
            "line_items": [{"price": "price_sandbox_monthly", "quantity": 1}],
        }
        client = sandbox.client()
        session = client.v1.checkout.sessions.create(recurring)
        sandbox.control(f"checkout/{session.id}/pay")
        for action in ("refund", "dispute"):
            intent = client.v1.payment_intents.create(INTENT)
            sandbox.control(f"intents/{intent.id}/pay")
            sandbox.control(f"charges/{intent.id}/{action}")
        run = {"clerkOrgId": "org_1", "appId": "shop", "serviceName": "caller", "taskName": "order"}
        sandbox.call("POST", "/runs-service/v1/runs", json=run, headers={"X-API-Key": "sandbox-runs-service"})

        stored = {"appId": "demo", "provider": "stripe-service-events:1f0e", "apiKey": told_app.SECRET}
        sandbox.call("POST", "/key-service/internal/app-keys", json=stored, headers=HEADERS)
        body = json.dumps(told_app.EVENT)
        assert told_app.tell(sandbox, body, body).status_code == 204

        assert '<tr role="row">' in shown_at(sandbox, table=table)


def shown_at(sandbox: Sandbox, **query: Any) -> str:
    answer = sandbox.call("GET", "/", params=query)
    assert answer.status_code == 200
    return answer.text


class TestPaidPage:
    def test_it_shows_the_status_as_the_service_knows_it(self, sandbox: Sandbox) -> None:
        with service_that_answers(200, {"payment": PAYMENT | {"status": "partially_refunded"}}) as service:
            shown = paid_page(sandbox, service.url, metadata={"paymentId": "p-1"})

        assert ">Partially refunded<" in shown
        assert "40.00 USD" in shown
        assert "http-equiv" not in shown
        assert service.asked == [("/status/p-1", "sandbox-api-key")]

    @pytest.mark.parametrize(("look", "looks_again"), [(0, True), (29, True), (30, False)])
    def test_it_looks_again_for_a_while_when_the_service_has_heard_nothing(
        self, sandbox: Sandbox, look: int, looks_again: bool
    ) -> None:
        with service_that_answers(200, {"payment": PAYMENT | {"status": "checkout_created"}}) as service:
            shown = paid_page(sandbox, service.url, look=look, metadata={"paymentId": "p-1"})

        assert (f'http-equiv="refresh" content="1; url=?look={look + 1}"' in shown) is looks_again

    @pytest.mark.parametrize("status", ["failed", "requires_payment_method", "processing"])
    def test_it_looks_again_when_the_service_has_heard_of_an_earlier_try_only(
        self, sandbox: Sandbox, status: str
    ) -> None:
        with service_that_answers(200, {"payment": PAYMENT | {"status": status}}) as service:
            unpaid = paid_page(sandbox, service.url, metadata={"paymentId": "p-1"})
            paid = paid_page(sandbox, service.url, is_paid=True, metadata={"paymentId": "p-1"})

        assert "http-equiv" not in unpaid
        assert "http-equiv" in paid

    def test_it_says_so_when_the_service_refuses(self, sandbox: Sandbox) -> None:
        with service_that_answers(403, {}) as service:
            shown = paid_page(sandbox, service.url, metadata={"paymentId": "p-1"})
        assert "The service answers with the status 403." in shown

    def test_it_says_so_when_the_service_is_away(self, sandbox: Sandbox) -> None:
        with service_that_answers(200, {}) as service:
            pass
        assert "The service doesn&#39;t answer." in paid_page(sandbox, service.url, metadata={"paymentId": "p-1"})

    def test_it_says_so_when_the_session_is_not_the_services(self, sandbox: Sandbox) -> None:
        with service_that_answers(200, {}) as service:
            assert "didn&#39;t make this checkout" in paid_page(sandbox, service.url)
        assert service.asked == []

    def test_it_refuses_a_session_that_there_is_not(self, sandbox: Sandbox) -> None:
        assert sandbox.call("GET", "/paid/cs_test_none").status_code == 404

    def test_it_holds_up_nobody_while_it_asks(self, sandbox: Sandbox) -> None:
        """The service may be asking the stand-ins when it is asked: this one does, before it answers."""

        def ask_back() -> None:
            assert sandbox.client().v1.payment_intents.create(INTENT).id

        with service_that_answers(200, {"payment": PAYMENT}, before=ask_back) as service:
            shown = paid_page(sandbox, service.url, metadata={"paymentId": "p-1"})
        assert ">Succeeded<" in shown


def paid_page(sandbox: Sandbox, service_url: str, *, look: int = 0, is_paid: bool = False, **fields: Any) -> str:
    """The page of a session that was made with the fields, while the service is at the address."""
    sandbox.control("webhooks", endpoints=[{"url": f"{service_url}/webhooks/stripe", "secret": "whsec_1"}])
    session = sandbox.client().v1.checkout.sessions.create({**SESSION, **fields})
    if is_paid:
        sandbox.control(f"checkout/{session.id}/pay")
    answer = sandbox.call("GET", f"/paid/{session.id}", params={"look": look})
    assert answer.status_code == 200
    return answer.text


class Service:
    """A service that gives one answer, and remembers what it was asked, with which key."""

    def __init__(self, status: int, body: dict[str, Any], before: Any) -> None:
        self.asked: list[tuple[str, str]] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.path, self.headers["X-API-Key"]))
                before()
                text = orjson.dumps(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def service_that_answers(status: int, body: dict[str, Any], *, before: Any = lambda: None) -> Iterator[Service]:
    service = Service(status, body, before)
    thread = threading.Thread(target=service.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield service
    finally:
        service.server.shutdown()
        service.server.server_close()
        thread.join()
