"""Chromium against a FastAPI application on our uvicorn class: what a page sees.

The page is the application's own. Scripts run in it with the browser's WebSocket and nothing else; the browser's
console may hold what a test expects there, and no more.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage, Page, Response, sync_playwright

from tests.support import LIMIT, PROJECT
from tests.support.programs import Program

from .test_browser import FLAGS, chromium

pytestmark = [
    pytest.mark.programs,
    pytest.mark.skipif(os.environ.get("WATERSHED_MW_NO_BROWSER") == "1", reason="WATERSHED_MW_NO_BROWSER=1"),
]

# A browser's WebSocket: after the greeting it sends the given messages, and it reports everything that it sees.
# With a close of its own it closes when as many messages have come back.
TALK = """([path, protocols, messages, close]) => new Promise((resolve) => {
    const socket = new WebSocket(new URL(path, location.href.replace('http', 'ws')), protocols);
    const seen = { opened: false, received: [], protocol: null, extensions: null, errors: 0 };
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => {
        seen.opened = true;
        seen.protocol = socket.protocol;
        seen.extensions = socket.extensions;
        for (const message of messages)
            socket.send(Array.isArray(message) ? new Uint8Array(message) : message);
    };
    socket.onmessage = ({ data }) => {
        seen.received.push(typeof data === 'string' ? data : Array.from(new Uint8Array(data)));
        if (close && seen.received.length === messages.length + 1) socket.close(...close);
    };
    socket.onerror = () => seen.errors += 1;
    socket.onclose = ({ code, reason, wasClean }) => resolve({ ...seen, code, reason, wasClean });
})"""

# The same with 1 MiB in each direction, compared over there.
ONE_MEBIBYTE = """([path, binary]) => new Promise((resolve) => {
    const bytes = new Uint8Array(2 ** 20).map((_, i) => 32 + (i * 7 + (i >> 8)) % 90);
    const text = new TextDecoder().decode(bytes);
    const socket = new WebSocket(new URL(path, location.href.replace('http', 'ws')));
    let same = null;
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => socket.send(binary ? bytes : text);
    socket.onmessage = ({ data }) => {
        if (data === 'hello ann') return;
        if (binary) {
            const got = new Uint8Array(data);
            same = got.length === bytes.length && got.every((byte, i) => byte === bytes[i]);
        } else same = data === text;
        socket.close(1000);
    };
    socket.onclose = ({ code, wasClean }) => resolve({ same, code, wasClean });
})"""

# One that stays open: what became of it is asked for later.
STAY = """() => new Promise((resolve) => {
    const socket = new WebSocket(new URL('/echo', location.href.replace('http', 'ws')));
    window.ended = new Promise((over) => {
        socket.onclose = ({ code, reason, wasClean }) => over({ code, reason, wasClean });
    });
    socket.onmessage = ({ data }) => resolve(data);
})"""


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    """The application, which logs only warnings and errors."""
    with Program(PROJECT / "tests" / "support" / "fastapi_app.py") as program:
        yield program


@pytest.fixture(scope="module")
def address(program: Program) -> str:
    return f"http://127.0.0.1:{program.port()}/"


# For this module only, as in test_browser.py.
@pytest.fixture(scope="module")
def browser_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=chromium(), headless=True, args=FLAGS
        )
        context.set_default_timeout(LIMIT * 1000)
        yield context.pages[0]
        context.close()


class Console:
    """The browser's console output, and the exceptions of the page."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._lines: list[str] = []
        page.on("console", self._add)
        page.on("pageerror", self._add_error)

    def _add(self, message: ConsoleMessage) -> None:
        self._lines.append(message.text)

    def _add_error(self, error: Any) -> None:
        self._lines.append(str(error))

    def take(self) -> list[str]:
        """The lines so far, which are then cleared."""
        lines, self._lines = self._lines, []
        return lines

    def close(self) -> None:
        self._page.remove_listener("console", self._add)
        self._page.remove_listener("pageerror", self._add_error)


@pytest.fixture
def console(browser_page: Page) -> Iterator[Console]:
    console = Console(browser_page)
    yield console
    console.close()
    assert console.take() == []


@pytest.fixture
def page(browser_page: Page, address: str, console: Console) -> Page:
    """The application's page, freshly loaded; it has set its cookie."""
    browser_page.context.clear_cookies()
    response = browser_page.goto(address)
    assert isinstance(response, Response)
    assert response.ok
    return browser_page


def talk(page: Page, path: str = "/echo", *messages: Any, protocols: Any = (), close: Any = None) -> Any:
    """The page's record of one WebSocket."""
    return page.evaluate(TALK, [path, list(protocols), list(messages), close])


def test_text_and_binary_messages_are_echoed_to_a_client_with_the_cookie(page: Page) -> None:
    messages = ["Grüße, 水 🌊", "", [0, 255, 128], []]
    seen = talk(page, "/echo", *messages, close=[1000])
    assert seen["received"] == ["hello ann", *messages]
    assert (seen["opened"], seen["errors"], seen["wasClean"]) == (True, 0, True)


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_one_mebibyte_is_echoed(page: Page, binary: bool) -> None:
    assert page.evaluate(ONE_MEBIBYTE, ["/echo", binary]) == {"same": True, "code": 1000, "wasClean": True}


@pytest.mark.parametrize("offer, chosen", [(["x", "echo.v1", "echo.v2"], "echo.v1"), ([], "")])
def test_the_subprotocol_is_negotiated(page: Page, offer: list[str], chosen: str) -> None:
    seen = talk(page, protocols=offer, close=[1000])
    assert (seen["protocol"], seen["wasClean"]) == (chosen, True)


def test_messages_are_compressed(page: Page) -> None:
    assert "permessage-deflate" in talk(page, close=[1000])["extensions"]


@pytest.mark.need(1)
@pytest.mark.parametrize(
    "messages, close, code, reason",
    [
        (["!close"], None, 4321, "as you wish"),
        ([], [4000, "bis später"], 4000, "bis später"),
        ([], [1000], 1000, ""),
        ([], [], 1005, ""),
    ],
    ids=["by the server", "by the page", "by the page without a reason", "by the page without a code"],
)
def test_a_close_is_clean_and_has_its_code_and_reason(
    page: Page, messages: list[Any], close: Any, code: int, reason: str
) -> None:
    seen = talk(page, "/echo", *messages, close=close)
    assert (seen["code"], seen["reason"], seen["wasClean"], seen["errors"]) == (code, reason, True, 0)


def test_an_endpoint_that_raises_closes_with_1011_without_details(page: Page, program: Program) -> None:
    seen = talk(page, "/echo", "!raise")
    assert (seen["code"], seen["reason"], seen["wasClean"], seen["errors"]) == (1011, "", True, 0)
    program.wait_for_line(re.compile("^LookupError: a secret of the server's$", re.MULTILINE))
    assert program.output.count("Traceback") == 1


@pytest.mark.need(9, 10)
@pytest.mark.parametrize(
    "cookie, path, protocols, complaint",
    [
        # What Chromium says of a 401.
        pytest.param(False, "/echo", [], "HTTP Authentication failed", id="no cookie"),
        pytest.param(True, "/nowhere", [], "Unexpected response code: 403", id="no such path"),
        pytest.param(True, "/echo", ["unknown"], "Unexpected response code: 400", id="no such subprotocol"),
    ],
)
def test_a_refusal_never_opens_and_only_the_console_shows_its_status(
    page: Page, console: Console, cookie: bool, path: str, protocols: list[str], complaint: str
) -> None:
    if not cookie:
        page.context.clear_cookies()
    seen = talk(page, path, protocols=protocols)
    assert (seen["opened"], seen["code"], seen["wasClean"], seen["errors"]) == (False, 1006, False, 1)
    (line,) = console.take()
    assert complaint in line


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of a page of another origin; the browser sends this machine's cookies with it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<!doctype html><link rel=icon href=data:,><title>elsewhere</title>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join(LIMIT)


@pytest.mark.need(8)
def test_a_page_of_another_host_is_refused_despite_its_cookies(
    page: Page, console: Console, address: str, elsewhere: str
) -> None:
    page.goto(elsewhere)
    seen = talk(page, address.replace("http", "ws") + "echo")
    assert (seen["opened"], seen["code"], seen["wasClean"]) == (False, 1006, False)
    (line,) = console.take()
    assert "Unexpected response code: 403" in line


@pytest.mark.need(2, 3)
def test_the_page_sees_the_shutdown(browser_page: Page, console: Console) -> None:
    with Program(PROJECT / "tests" / "support" / "fastapi_app.py") as program:
        browser_page.goto(f"http://127.0.0.1:{program.port()}/")
        assert browser_page.evaluate(STAY) == "hello ann"
        program.stop()
        ended = browser_page.evaluate("() => window.ended")
    assert ended == {"code": 1012, "reason": "the server restarts", "wasClean": True}
