"""Somebody at a browser, who notices what goes wrong there."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, Route, WebError

SCREENSHOTS = Path(__file__).parent / "screenshots"
# Both are this machine's loopback address: see `conftest`.
HERE = frozenset({"127.0.0.1", "docs.test"})


@dataclass
class Visitor:
    """A browser of its own, without history, that reaches this machine only."""

    context: BrowserContext
    size: str = "desk"
    # Requests that would have left the machine, errors on the console, exceptions in scripts.
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context.route("**/*", self._admit)
        self.context.on("console", self._listen)
        self.context.on("weberror", self._catch)

    def open(self, url: str) -> Page:
        page = self.context.new_page()
        page.goto(url)
        return page

    def photograph(self, what: Page | Locator, name: str) -> None:
        """Keep a picture of what is seen, for a person to look at."""
        SCREENSHOTS.mkdir(exist_ok=True)
        what.screenshot(path=SCREENSHOTS / f"{name}.png")

    def photograph_whole(self, page: Page, name: str) -> None:
        """Keep a picture of the page from its top to its end, named after the size that it is seen at."""
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}-{self.size}.png", full_page=True)

    def _admit(self, route: Route) -> None:
        if urlsplit(route.request.url).hostname in HERE:
            route.continue_()
        else:
            self.complaints.append(f"a request to {route.request.url}")
            route.abort()

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type} on the console: {message.text}")

    def _catch(self, error: WebError) -> None:
        self.complaints.append(f"exception: {error.error}")
