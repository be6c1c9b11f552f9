"""What the tests of the doors share: servers in threads, and a client that does exactly what it is told.

Servers are the real ones, on port 0 of loopback. Frames and HTTP answers are read by the `websockets` and h11
packages, never by the code under test. Nothing waits without a limit, and nothing waits for a length of time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar

import h11
import uvicorn
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.support import LIMIT

T = TypeVar("T")
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

UVICORN_CLASS = "watershed_mw.uvicorn:WatershedProtocol"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""The key of RFC 6455 section 1.3, and below what answers it."""
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_REQUEST = re.compile(r'"(\S+ \S+) HTTP/1\.\d" (\d+)')


def eventually(condition: Callable[[], T | None], what: str = "") -> T:
    """The first true value of `condition`; AssertionError after the limit."""
    deadline = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < deadline, f"it never came: {what or condition}"
        time.sleep(0.005)
    return value


class Gate(Generic[T]):
    """A value that one thread hands to another, or to a coroutine, once."""

    def __init__(self) -> None:
        self._future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def put(self, value: T) -> None:
        self._future.set_result(value)

    def get(self) -> T:
        return self._future.result(LIMIT)

    async def wait(self) -> T:
        return await asyncio.wait_for(asyncio.wrap_future(self._future), LIMIT)

    @property
    def passed(self) -> bool:
        return self._future.done()


class Inbox(Generic[T]):
    """Values that an application reports, in order."""

    def __init__(self) -> None:
        self._queue: queue.Queue[T] = queue.Queue()

    def put(self, value: T) -> None:
        self._queue.put(value)

    def get(self) -> T:
        try:
            return self._queue.get(timeout=LIMIT)
        except queue.Empty:
            raise AssertionError("the application reported nothing") from None

    @property
    def empty(self) -> bool:
        return self._queue.empty()


# --- clients ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def dial(
    port: int,
    path: str = "/",
    *,
    protocols: Sequence[str] = (),
    origin: str | None = None,
    compression: str | None = None,
    max_size: int | None = 2**26,
    **options: Any,
) -> Iterator[ClientConnection]:
    """A well-behaved client (the `websockets` package).

    Never over TLS: it reads in a thread of its own, and before Python 3.13 an `SSLSocket` that two threads use at
    once may lose what it has read.
    """
    with connect(
        f"ws://127.0.0.1:{port}{path}",
        subprotocols=[Subprotocol(one) for one in protocols] or None,
        origin=Origin(origin) if origin else None,
        compression=compression,
        proxy=None,
        open_timeout=LIMIT,
        close_timeout=LIMIT,
        ping_interval=None,
        max_size=max_size,
        **options,
    ) as client:
        yield client


def head(
    path: str = "/", *, first: str | list[str] | None = "GET {} HTTP/1.1", **changes: str | list[str] | None
) -> bytes:
    """An upgrade request, of which `first` is the first line.

    `changes` name header fields with underscores: None leaves one out, a list repeats it.
    """
    fields: dict[str, str | list[str] | None] = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    }
    known = {name.lower().replace("-", "_"): name for name in fields}
    for name, value in changes.items():
        fields[known.get(name.lower(), name.replace("_", "-"))] = value
    lines = [str(first).format(path)]
    for name, value in fields.items():
        if value is not None:
            lines += [f"{name}: {one}" for one in ([value] if isinstance(value, str) else value)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def text(message: str) -> bytes:
    """A masked TEXT frame."""
    return Frame(Opcode.TEXT, message.encode()).serialize(mask=True)


def binary(message: bytes) -> bytes:
    """A masked BINARY frame."""
    return Frame(Opcode.BINARY, message).serialize(mask=True)


def ping(payload: bytes) -> bytes:
    """A masked PING frame."""
    return Frame(Opcode.PING, payload).serialize(mask=True)


def close(code: int = 1000, reason: str = "") -> bytes:
    """A masked CLOSE frame."""
    return Frame(Opcode.CLOSE, code.to_bytes(2, "big") + reason.encode()).serialize(mask=True)


@dataclass
class Answer:
    """An HTTP response: header names in lower case, repeated fields in order."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes = b""

    def __getitem__(self, name: str) -> str:
        return ", ".join(self.all(name))

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name]


@dataclass
class Peer:
    """A bare TCP client: sends whatever a test gives it, and understands what comes back.

    With `clean`, a TLS stream has to end with close_notify: anything less is an `ssl.SSLEOFError`.
    """

    port: int
    tls: ssl.SSLContext | None = None
    clean: bool = False
    receive_buffer: int | None = None
    sock: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.sock = socket.socket()
        if self.receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        self.sock.settimeout(LIMIT)
        self.sock.connect(("127.0.0.1", self.port))
        if self.tls is not None:
            self.sock = self.tls.wrap_socket(
                self.sock, server_hostname="127.0.0.1", suppress_ragged_eofs=not self.clean
            )
        self._frames = Protocol(Side.CLIENT, max_size=None)
        self._pending: list[Frame] = []
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def open(self, path: str = "/", **changes: str | list[str] | None) -> Answer:
        """Ask for the upgrade, and take the 101."""
        return self.open_with(head(path, **changes))

    def open_with(self, data: bytes) -> Answer:
        """Send a request of the test's own, perhaps with more in the same segment, and take the 101."""
        self.send(data)
        answer = self.answer()
        assert answer.status == 101, answer
        return answer

    def answer(self) -> Answer:
        """The next HTTP response. After anything but a 101 the server's end of the stream must follow, and no more."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method="GET", target="/", headers=[("Host", "-"), ("Upgrade", "websocket")]))
        parser.send(h11.EndOfMessage())
        answer: Answer | None = None
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(self.sock.recv(65536))
            elif isinstance(event, (h11.InformationalResponse, h11.Response)):
                fields = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
                answer = Answer(event.status_code, fields)
                if event.status_code == 101:
                    self._rest = parser.trailing_data[0]
                    return answer
            elif isinstance(event, h11.Data):
                assert answer is not None
                answer.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert answer is not None
                self._rest = parser.trailing_data[0]
                return answer
            else:
                raise AssertionError(f"expected an HTTP response, got {event!r}")

    def refusal(self) -> Answer:
        """The HTTP response that refuses, after which the stream must end with nothing more."""
        answer = self.answer()
        assert answer.status != 101, "it was accepted"
        assert self.rest() == b"", "something follows the response"
        return answer

    def rest(self) -> bytes:
        """Everything up to the end of the stream, uninterpreted."""
        data = self._rest
        with contextlib.suppress(ConnectionResetError):
            while chunk := self.sock.recv(65536):
                data += chunk
        return data

    def frame(self) -> Frame:
        """The next frame from the server; EOFError at the end of the stream."""
        while not self._pending:
            data, self._rest = self._rest or self.sock.recv(65536), b""
            if not data:
                raise EOFError
            self._frames.receive_data(data)
            self._frames.data_to_send()
            for event in self._frames.events_received():
                assert isinstance(event, Frame)
                self._pending.append(event)
        return self._pending.pop(0)

    def text(self) -> str:
        """The next frame, which must be a whole TEXT message."""
        frame = self.frame()
        assert frame.opcode is Opcode.TEXT, frame
        assert frame.fin
        return bytes(frame.data).decode()

    def close(self) -> tuple[int | None, str]:
        """The server's Close, which must come next: code and reason."""
        frame = self.frame()
        assert frame.opcode is Opcode.CLOSE, frame
        data = bytes(frame.data)
        return (int.from_bytes(data[:2], "big") if data else None), data[2:].decode()

    def end(self) -> None:
        """The stream must end here."""
        assert not self._pending
        assert self.rest() == b""

    def vanish(self) -> None:
        """Drop the connection with a RST, as a client whose network or process died."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()


# --- uvicorn ---------------------------------------------------------------------------------------------


class Run:
    """What became of the applications that a server started for one test."""

    def __init__(self) -> None:
        self._outcomes: Inbox[BaseException | None] = Inbox()

    def wrap(self, app: ASGIApp) -> ASGIApp:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except BaseException as error:
                self._outcomes.put(error)
                raise
            self._outcomes.put(None)

        return run

    def outcome(self) -> BaseException | None:
        """The exception with which the next application ended, None when it returned."""
        return self._outcomes.get()

    @property
    def empty(self) -> bool:
        return self._outcomes.empty


class Uvicorn:
    """A uvicorn in a thread. The application may be exchanged between requests."""

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


async def accept(receive: Receive, send: Send, **fields: Any) -> None:
    """Take the connect message and accept."""
    assert await receive() == {"type": "websocket.connect"}
    await send({"type": "websocket.accept", **fields})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Echo every message in its own type."""
    await accept(receive, send)
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


# --- werkzeug --------------------------------------------------------------------------------------------


class _Lines(logging.Handler):
    """Werkzeug's log as plain lines, without the colours."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(_COLOURS.sub("", record.getMessage()).strip())


class Werkzeug:
    """A werkzeug server in a thread, with what it logs."""

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
        """Wait for so many requests in the log: each as `GET /path 200`."""
        return eventually(lambda: found if len(found := self._requests()) >= count else None, f"{count} in {self.log}")

    def _requests(self) -> list[str]:
        found = (_REQUEST.search(line) for line in self.log)
        return [f"{match[1]} {match[2]}" for match in found if match]

    @property
    def troubles(self) -> list[str]:
        """Everything logged that is not a request."""
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
