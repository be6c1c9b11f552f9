"""uvicorn and werkzeug, each in a thread of the test's process, on port 0 of loopback, and their logs."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import uvicorn
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.support import LIMIT
from tests.support.asgi import ASGIApp, Receive, Scope, Send
from tests.support.waiting import Inbox, eventually

UVICORN_CLASS = "watershed_mw.uvicorn:WatershedProtocol"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_REQUEST = re.compile(r'"(\S+ \S+) HTTP/1\.\d" (\d+)')


class Run:
    """The outcomes of the applications that a server ran for one test."""

    def __init__(self) -> None:
        self._outcomes: Inbox[BaseException | None] = Inbox()

    def wrap(self, app: ASGIApp) -> ASGIApp:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except BaseException as error:
                self._report(error)
                raise
            self._report(None)

        return run

    def _report(self, outcome: BaseException | None) -> None:
        # One loop iteration later the server has passed the exception to every log handler. A test that continues
        # earlier may end first, and pytest's handlers keep the record beyond its end.
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # hypercorn runs the application under trio
            self._outcomes.put(outcome)
        else:
            loop.call_soon(self._outcomes.put, outcome)

    def outcome(self) -> BaseException | None:
        """The exception with which the next application ended, None when it returned."""
        return self._outcomes.get()

    @property
    def empty(self) -> bool:
        return self._outcomes.empty


class Uvicorn:
    """uvicorn in a thread. The application may be replaced between requests."""

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        loop: str = "asyncio",
        http: str | type[asyncio.Protocol] = "h11",
        ws: str | type[asyncio.Protocol] = UVICORN_CLASS,
        lifespan: Any = "off",
        **settings: Any,
    ) -> None:
        self._app = app
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        # Without a log_config its loggers keep their handlers: none. The records reach caplog.
        config = uvicorn.Config(
            self._dispatch,
            interface="asgi3",
            loop=loop,
            http=http,
            ws=ws,
            lifespan=lifespan,
            log_config=None,
            log_level="info",
            **settings,
        )
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [listener]}, name=f"uvicorn-{self.port}", daemon=True
        )
        self._thread.start()

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._app is not None
        await self._app(scope, receive, send)

    def run(self, app: ASGIApp) -> Run:
        """Serve this application from now on."""
        run = Run()
        self._app = run.wrap(app)
        return run

    def begin_stop(self) -> None:
        self.server.should_exit = True

    def wait_stopped(self, limit: float = LIMIT) -> None:
        self._thread.join(limit)
        assert not self._thread.is_alive(), f"uvicorn still runs {limit} seconds after it was told to stop"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.begin_stop()
        try:
            self.wait_stopped()
        except AssertionError:
            self.server.force_exit = True
            self._thread.join(LIMIT)
            if error is None:
                raise


class _Lines(logging.Handler):
    """Werkzeug's log as plain lines, without the colours."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(_COLOURS.sub("", record.getMessage()).strip())


class Werkzeug:
    """A werkzeug server in a thread, with its log."""

    def __init__(
        self,
        app: Any,
        *,
        threaded: bool = True,
        ssl_context: ssl.SSLContext | None = None,
        handler: type[WSGIRequestHandler] = WSGIRequestHandler,
    ) -> None:
        self._log = _Lines()
        self.crashes: list[BaseException | None] = []
        """What requests raised past every handler of werkzeug's."""
        self.server: BaseWSGIServer = make_server(
            "127.0.0.1", 0, app, threaded=threaded, ssl_context=ssl_context, request_handler=handler
        )
        self.server.handle_error = lambda *_: self.crashes.append(sys.exception())  # type: ignore[method-assign]
        self.port: int = self.server.server_port
        self._thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, name=f"werkzeug-{self.port}", daemon=True
        )
        logging.getLogger("werkzeug").addHandler(self._log)
        self._thread.start()

    @property
    def log(self) -> list[str]:
        return self._log.lines

    def access_log(self, count: int) -> list[str]:
        """Wait for this many requests in the log, each as `GET /path 200`."""
        return eventually(lambda: found if len(found := self._requests()) >= count else None, f"{count} in {self.log}")

    def _requests(self) -> list[str]:
        found = (_REQUEST.search(line) for line in self.log)
        return [f"{match[1]} {match[2]}" for match in found if match]

    @property
    def troubles(self) -> list[str]:
        """Everything logged except requests."""
        return [line for line in self.log if not _REQUEST.search(line)] + [repr(error) for error in self.crashes]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self._thread.join(LIMIT)
        self.server.server_close()
        logging.getLogger("werkzeug").removeHandler(self._log)


def errors_in(records: Sequence[logging.LogRecord]) -> list[str]:
    """The log records at ERROR and above, and every record with a traceback."""
    return [record.getMessage() for record in records if record.levelno >= logging.ERROR or record.exc_info]
