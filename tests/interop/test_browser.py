"""The demo page in headless Chromium, which talks to both doors: what a user sees, as a user finds it.

Chromium is the distribution's own; Playwright only drives it. Every browser starts with an empty profile, and
with everything switched off that would talk to anyone but the demo.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.support import LIMIT, PROJECT
from tests.support.programs import Program

pytestmark = [
    pytest.mark.programs,
    pytest.mark.skipif(os.environ.get("WATERSHED_MW_NO_BROWSER") == "1", reason="WATERSHED_MW_NO_BROWSER=1"),
]
FLAGS = [
    "--no-sandbox",  # CI is root in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DOORS = ("asgi", "wsgi")


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise AssertionError(
        "Chromium is not installed: the browser tests drive it against the demo page. Install it (Debian:"
        " apt-get install chromium), or set WATERSHED_MW_NO_BROWSER=1 to leave these tests out."
    )


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a demo that runs as users run it."""
    with Program(PROJECT / "examples" / "demo.py", "--port", "0") as demo:
        yield f"http://127.0.0.1:{demo.port()}/"


# For this module only: while Playwright's synchronous API is active, the main thread counts as inside an
# event loop, and other code cannot call asyncio.run() there.
@pytest.fixture(scope="module")
def browser_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=chromium(), headless=True, args=FLAGS
        )
        context.set_default_timeout(LIMIT * 1000)
        expect.set_options(timeout=LIMIT * 1000)
        yield context.pages[0]
        context.close()


@pytest.fixture
def page(browser_page: Page, address: str) -> Iterator[Page]:
    """The demo page, freshly loaded. An error in its script, or any console output, fails the test."""
    complaints: list[str] = []
    on_error = lambda error: complaints.append(str(error))  # noqa: E731
    browser_page.on("pageerror", on_error)
    browser_page.goto(address)
    yield browser_page
    browser_page.remove_listener("pageerror", on_error)
    assert complaints == []


@pytest.fixture(params=DOORS)
def door(page: Page, request: pytest.FixtureRequest) -> Locator:
    """One of the two cards, with its connection open."""
    card = page.get_by_role("region", name={"asgi": "Starlette", "wsgi": "Flask"}[request.param])
    expect(state(card)).to_have_text("open")
    return card


def state(door: Locator) -> Locator:
    return door.get_by_role("status")


def fact(door: Locator, name: str) -> Locator:
    """The value beside a label, such as "Subprotocol"."""
    return door.locator("div", has=door.page.locator("dt", has_text=re.compile(f"^{name}$"))).locator("dd").last


def messages(door: Locator, direction: str) -> Locator:
    return door.get_by_role("list", name="Messages").get_by_role("listitem").filter(has_text=direction)


def close(door: Locator, by: str, code: int, reason: str) -> None:
    door.get_by_label("Close by").select_option(by)
    door.get_by_label("Code").fill(str(code))
    door.get_by_label("Reason").fill(reason)
    door.get_by_role("button", name="Close").click()


def test_text_and_binary_messages_are_echoed(door: Locator) -> None:
    door.get_by_label("Message", exact=True).fill("Grüße, 水")
    door.get_by_role("button", name="Send text").click()
    expect(messages(door, "←")).to_have_text([re.compile("text.*Grüße, 水")])
    door.get_by_role("button", name="Send binary").click()
    expect(messages(door, "←")).to_have_text([re.compile("text"), re.compile("binary.*47 72 c3 bc c3 9f 65")])
    expect(messages(door, "→")).to_have_count(2)
    expect(fact(door, "Sent / received")).to_have_text("2 / 2")


def test_the_page_shows_the_subprotocol_and_the_round_trip(door: Locator) -> None:
    expect(fact(door, "Subprotocol")).to_have_text("echo.watershed")
    expect(door.get_by_role("list", name="Messages")).to_contain_text("open, compressed, offered")
    door.get_by_role("button", name="Measure").click()
    for name in ("Round trip, last", "Round trip, median"):
        expect(fact(door, name)).to_have_text(re.compile(r"^\d+(\.\d\d)? ms$"))


@pytest.mark.parametrize("by", ["this page", "the server"])
def test_the_page_shows_close_code_and_reason(door: Locator, by: str) -> None:
    close(door, by, 4001, "bis später")
    expect(door.get_by_role("alert")).to_have_text("Closed with 4001 “bis später”")
    expect(state(door)).to_have_text("closed")


def test_the_page_shows_a_close_code_reserved_for_servers(door: Locator) -> None:
    close(door, "the server", 1013, "try again later")
    expect(door.get_by_role("alert")).to_have_text("Closed with 1013 “try again later”")


def test_another_subprotocol_can_be_offered(door: Locator) -> None:
    close(door, "this page", 1000, "")
    expect(door.get_by_role("alert")).to_have_text("Closed with 1000, no reason")
    door.get_by_label("Subprotocols to offer").fill("unknown.v1, json")
    door.get_by_role("button", name="Reconnect").click()
    expect(state(door)).to_have_text("open")
    expect(fact(door, "Subprotocol")).to_have_text("json")


def test_an_unknown_subprotocol_is_refused(door: Locator) -> None:
    close(door, "this page", 1000, "")
    door.get_by_label("Subprotocols to offer").fill("unknown.v1")
    door.get_by_role("button", name="Reconnect").click()
    expect(door.get_by_role("alert")).to_contain_text("never opened")
    door.get_by_label("Subprotocols to offer").fill("")
    door.get_by_role("button", name="Reconnect").click()
    expect(fact(door, "Subprotocol")).to_have_text("none")
    expect(state(door)).to_have_text("open")


# A WebSocket of the browser without the page around it: opens, has 1 MiB echoed, closes without a code.
RAW = """url => new Promise((resolve) => {
    const sent = new Uint8Array(2 ** 20).map((_, i) => i * 7 + (i >> 8));
    const socket = new WebSocket(url);
    let same = null;
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => socket.send(sent);
    socket.onmessage = ({ data }) => {
        const got = new Uint8Array(data);
        same = got.length === sent.length && got.every((byte, i) => byte === sent[i]);
        socket.close();
    };
    socket.onclose = ({ code, reason, wasClean }) => resolve({ same, code, reason, wasClean });
})"""


def test_one_mebibyte_is_echoed_and_a_close_without_a_code_is_1005(page: Page, door: Locator) -> None:
    url = door.locator(".url").inner_text()
    assert page.evaluate(RAW, url) == {"same": True, "code": 1005, "reason": "", "wasClean": True}


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of a page of another origin on this machine; a browser lets it try."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join(LIMIT)


def test_a_page_of_another_host_is_refused(page: Page, door: Locator, elsewhere: str) -> None:
    url = door.locator(".url").inner_text()
    page.goto(elsewhere)  # its content is an error message, which is as good as any
    assert page.evaluate(RAW, url) == {"same": None, "code": 1006, "reason": "", "wasClean": False}
