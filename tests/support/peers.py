"""Clients of a server under test: a well-behaved one, and one that does exactly what a test says.

Frames and HTTP responses are parsed by the `websockets` and h11 packages, never by the code under test. Every wait has
a limit, and none waits for a fixed time.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import h11
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from tests.support import LIMIT

T = TypeVar("T")

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""The key of RFC 6455 section 1.3, and below what answers it."""
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


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

    Never over TLS: it reads in a thread of its own, and before Python 3.13 an `SSLSocket` used by two threads at once
    may lose received data.
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
    """An upgrade request with the request line `first`.

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
    """A bare TCP client that sends exactly what a test says and parses the replies.

    With `clean`, a TLS stream must end with close_notify: anything else is an `ssl.SSLEOFError`.
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
        """Request the upgrade, and expect the 101."""
        return self.open_with(head(path, **changes))

    def open_with(self, data: bytes) -> Answer:
        """Send a custom request, possibly with more data in the same segment, and expect the 101."""
        self.send(data)
        answer = self.answer()
        assert answer.status == 101, answer
        return answer

    def answer(self) -> Answer:
        """The next HTTP response.

        After anything but a 101 the server must end the stream without sending more.
        """
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
        """The HTTP response of a refusal, after which the stream must end."""
        answer = self.answer()
        assert answer.status != 101, "it was accepted"
        assert self.rest() == b"", "something follows the response"
        return answer

    def rest(self) -> bytes:
        """Everything up to the end of the stream, unparsed."""
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
        """The next frame, which must be a complete TEXT message."""
        frame = self.frame()
        assert frame.opcode is Opcode.TEXT, frame
        assert frame.fin
        return bytes(frame.data).decode()

    def close(self) -> tuple[int | None, str]:
        """Code and reason of the server's Close, which must come next."""
        frame = self.frame()
        assert frame.opcode is Opcode.CLOSE, frame
        data = bytes(frame.data)
        return (int.from_bytes(data[:2], "big") if data else None), data[2:].decode()

    def end(self) -> None:
        """Expect the end of the stream."""
        assert not self._pending
        assert self.rest() == b""

    def vanish(self) -> None:
        """Drop the connection with an RST, like a client whose network or process died."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()


# --- uvicorn ---------------------------------------------------------------------------------------------


# --- werkzeug --------------------------------------------------------------------------------------------
