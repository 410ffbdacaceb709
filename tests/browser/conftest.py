"""A browser: Debian's Chromium, since a build of its own can't be downloaded everywhere."""

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser.visitor import Visitor
from tests.stand_ins import StandIns
from tests.web import WebProcess
from tests.webhooks import SECRET

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# No name leads off this machine, whichever part of the browser asks for it; one that isn't `localhost` leads here.
STAYING_HERE = "--host-resolver-rules=MAP docs.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"

# A desk's browser and a phone's: width and height in CSS pixels.
SIZES = {"desk": (1280, 900), "phone": (390, 844)}

expect.set_options(timeout=20_000)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, STAYING_HERE])
        yield browser
        browser.close()


@pytest.fixture
def visitor(chromium: Browser) -> Iterator[Visitor]:
    context = chromium.new_context(service_workers="block", viewport={"width": 1200, "height": 900})
    yield Visitor(context)
    context.close()


@pytest.fixture(params=SIZES)
def sized_visitor(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Visitor]:
    """A visitor at a desk, then one with a phone."""
    width, height = SIZES[request.param]
    context = chromium.new_context(
        service_workers="block",
        viewport={"width": width, "height": height},
        # Only a phone shows a page at a desk's width unless it names a viewport.
        is_mobile=request.param == "phone",
    )
    yield Visitor(context, request.param)
    context.close()


@pytest.fixture
def service(web: WebProcess, stand_ins: StandIns) -> WebProcess:
    """The service, with webhooks delivered to it."""
    endpoint = {"url": f"{web.url}/webhooks/stripe", "secret": SECRET}
    stand_ins.control("webhooks", mode="deliver", endpoints=[endpoint])
    return web
