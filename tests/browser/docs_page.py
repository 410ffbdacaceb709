"""The docs page, in the words of somebody who tries a route on it."""

import json
from typing import Any

from playwright.sync_api import Locator, Page, expect


class DocsPage:
    """Swagger UI with our document."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def operation(self, method: str, path: str) -> Locator:
        """What the page says of a route."""
        return self.page.locator(f".opblock-{method.lower()}", has=self.page.locator(f"[data-path='{path}']"))

    def authorize(self, api_key: str) -> None:
        """Give the API key that all tries are sent with."""
        self.page.locator("button.authorize").first.click()
        dialog = self.page.locator(".dialog-ux .modal-ux")
        dialog.locator("input").fill(api_key)
        dialog.get_by_role("button", name="Apply credentials").click()
        dialog.get_by_role("button", name="Close", exact=True).click()

    def change_key(self, api_key: str) -> None:
        """Take back the API key that was given, and give another."""
        self.page.locator("button.authorize").first.click()
        self.page.locator(".dialog-ux .modal-ux").get_by_role("button", name="Remove authorization").click()
        self.page.locator(".dialog-ux .modal-ux").get_by_role("button", name="Close", exact=True).click()
        self.authorize(api_key)

    def execute(self, method: str, path: str, body: dict[str, Any] | None = None, **parameters: str) -> dict[str, Any]:
        """Try a route out, and return what the page shows as its answer."""
        operation = self.operation(method, path)
        self._open(operation)
        for name, value in parameters.items():
            operation.locator(f"tr[data-param-name='{name}'] input").fill(value)
        if body is not None:
            operation.locator("textarea.body-param__text").fill(json.dumps(body))
        with self.page.expect_response(lambda response: response.request.method == method) as answered:
            operation.get_by_role("button", name="Execute").click()
        return self._read_answer(operation, request_id=answered.value.headers["x-request-id"])

    def _open(self, operation: Locator) -> None:
        if "is-open" not in (operation.get_attribute("class") or ""):
            operation.locator(".opblock-summary-control").click()
            operation.get_by_role("button", name="Try it out").click()

    def _read_answer(self, operation: Locator, *, request_id: str) -> dict[str, Any]:
        answer = operation.locator(".live-responses-table")
        # What is shown may still be the answer to an earlier try.
        expect(answer).to_contain_text(request_id)
        expect(answer.locator(".response-col_status").last).to_contain_text("200")
        return dict(json.loads(answer.locator("code.language-json").first.inner_text()))
