"""The PyPI packages `websockets` (threads) and `picows` (asyncio) as parties, a client and a server each.

They run inside the test's process, each with an event loop or threads of its own. Trusts the libraries to
follow the RFC as they document it; never uses anything of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Sequence
from typing import Any

import picows
import websockets.exceptions
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from tests.support import LIMIT
from tests.support.loops import LoopThread
from tests.support.parties import FRAGMENTED, PROTOCOLS, Ending, Endings, Feature, Message, Refused, parse_close

MAX_SIZE = 4 * 2**20  # bytes; above the largest message that any scenario sends


def _drop(connection: ClientConnection | ServerConnection) -> None:
    # The library has no abort of its own; this is what its threads see when a cable is pulled.
    connection.close_socket()


def _ending(connection: ClientConnection | ServerConnection) -> Ending:
    code = connection.close_code
    return Ending(code, connection.close_reason or "", reset=code == 1006)


class WebsocketsSession:
    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.protocol = connection.subprotocol
        assert connection.response is not None
        self.compressed = "permessage-deflate" in connection.response.headers.get("Sec-WebSocket-Extensions", "")

    def send(self, message: Message) -> None:
        self._connection.send(message)

    def send_fragments(self, parts: Sequence[bytes], *, text: bool) -> None:
        self._connection.send(parts, text=text)

    def receive(self) -> Message:
        message: Message = self._connection.recv(timeout=LIMIT)
        return message

    def ping(self, data: bytes) -> bytes:
        assert self._connection.ping(data).wait(LIMIT), f"no PONG within {LIMIT} s"
        return data  # the library wakes the waiter only for the very payload

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        assert code is not None
        self._connection.close(code, reason)

    def abort(self) -> None:
        _drop(self._connection)

    def ending(self) -> Ending:
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            unexpected = self._connection.recv(timeout=LIMIT)
            raise AssertionError(f"a message instead of the end: {unexpected!r:.80}")
        self._connection.close()  # waits until the library's own threads are gone
        return _ending(self._connection)


class WebsocketsClient:
    name = "websockets"
    features = frozenset(Feature) - {Feature.BARE_CLOSE}

    def open(self, url: str, protocols: Sequence[str] = (), *, compression: bool = False) -> WebsocketsSession:
        try:
            connection = connect(
                url,
                subprotocols=[Subprotocol(one) for one in protocols] or None,
                compression="deflate" if compression else None,
                max_size=MAX_SIZE,
                proxy=None,
                open_timeout=LIMIT,
                close_timeout=LIMIT,
            ).__enter__()  # from version 17 on, `connect` insists on being a context manager; see `ending`
        except websockets.exceptions.InvalidStatus as refusal:
            raise Refused(refusal.response.status_code) from None
        return WebsocketsSession(connection)


class WebsocketsServer:
    name = "websockets"
    features = frozenset(Feature)

    def __init__(self) -> None:
        self._endings = Endings()
        self._server = serve(
            self._handle,
            "127.0.0.1",
            0,
            subprotocols=[Subprotocol(one) for one in PROTOCOLS],
            select_subprotocol=self._select,
            process_request=self._refuse_forbidden,
            max_size=MAX_SIZE,
            open_timeout=LIMIT,
            close_timeout=LIMIT,
        )
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @staticmethod
    def _refuse_forbidden(connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(403, "forbidden\n") if request.path.startswith("/forbidden") else None

    @staticmethod
    def _select(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        # As the library itself does, except that it also refuses clients that offer none.
        chosen = next((one for one in offered if one in PROTOCOLS), None)
        if offered and chosen is None:
            raise websockets.exceptions.NegotiationError(f"no subprotocol among {offered}")
        return chosen

    def _handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            while True:
                self._obey(connection, connection.recv())
        self._endings.put(connection.request.path, _ending(connection))

    @staticmethod
    def _obey(connection: ServerConnection, message: Message) -> None:
        if isinstance(message, bytes) or not message.startswith("!"):
            connection.send(message)
        elif message.startswith("!close "):
            connection.close(*parse_close(message))
        elif message == "!abort":
            _drop(connection)
        elif message == "!fragments":
            connection.send(FRAGMENTED, text=True)
        elif message.startswith("!ping "):
            data = message.removeprefix("!ping ")
            if connection.ping(data).wait(LIMIT):
                connection.send(f"pong {data}")

    def ending(self, path: str) -> Ending:
        return self._endings.get(path)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(LIMIT)


class PicowsListener(picows.WSListener):
    """Joins fragments and answers CLOSE: picows passes on single frames and leaves that to its user."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.pongs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.ended = threading.Event()
        self.ending = Ending(1006, "", reset=True)
        self._parts: list[bytes] = []
        self._kind = picows.WSMsgType.TEXT

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        kind, data = frame.msg_type, frame.get_payload_as_bytes()
        if kind == picows.WSMsgType.CLOSE:
            code = int.from_bytes(data[:2], "big") if data else 1005
            self.ending = Ending(code, data[2:].decode(), reset=False)
            if not transport.is_close_frame_sent:
                transport.send_close(frame.get_close_code(), data[2:])
            transport.disconnect()
        elif kind == picows.WSMsgType.PONG:
            self.on_pong(transport, data)
        elif kind != picows.WSMsgType.PING:
            self._on_data(transport, kind, data, frame.fin)

    def _on_data(self, transport: picows.WSTransport, kind: picows.WSMsgType, data: bytes, fin: bool) -> None:
        if kind != picows.WSMsgType.CONTINUATION:
            self._kind = kind
        self._parts.append(data)
        if fin:
            payload = b"".join(self._parts)
            self._parts.clear()
            self.on_message(transport, payload.decode() if self._kind == picows.WSMsgType.TEXT else payload)

    def on_pong(self, transport: picows.WSTransport, data: bytes) -> None:
        self.pongs.put(data)

    def on_message(self, transport: picows.WSTransport, message: Message) -> None:
        self.messages.put(message)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.ended.set()


def _picows_send(transport: picows.WSTransport, message: Message) -> None:
    kind = picows.WSMsgType.BINARY if isinstance(message, bytes) else picows.WSMsgType.TEXT
    transport.send(kind, message if isinstance(message, bytes) else message.encode())


def _picows_fragments(transport: picows.WSTransport, parts: Sequence[bytes], *, text: bool) -> None:
    kind = picows.WSMsgType.TEXT if text else picows.WSMsgType.BINARY
    for number, part in enumerate(parts):
        transport.send(kind, part, fin=number == len(parts) - 1)
        kind = picows.WSMsgType.CONTINUATION


PICOWS_FEATURES = frozenset({Feature.ANY_CODE, Feature.FRAGMENTS, Feature.PING, Feature.ABORT})


class PicowsSession:
    compressed = False

    def __init__(self, loop: LoopThread, transport: picows.WSTransport, listener: PicowsListener) -> None:
        self._loop = loop
        self._transport = transport
        self._listener = listener
        self.protocol: str | None = transport.response.headers.get("Sec-WebSocket-Protocol")

    def _on_loop(self, function: Any, *arguments: Any, **options: Any) -> None:
        # picows checks that it is called in its loop's thread.
        async def call() -> None:
            function(*arguments, **options)

        self._loop.call(call())

    def send(self, message: Message) -> None:
        self._on_loop(_picows_send, self._transport, message)

    def send_fragments(self, parts: Sequence[bytes], *, text: bool) -> None:
        self._on_loop(_picows_fragments, self._transport, parts, text=text)

    def receive(self) -> Message:
        return self._listener.messages.get(timeout=LIMIT)

    def ping(self, data: bytes) -> bytes:
        self._on_loop(self._transport.send_ping, data)
        return self._listener.pongs.get(timeout=LIMIT)

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        self._on_loop(self._transport.send_close, code, reason.encode())

    def abort(self) -> None:
        self._on_loop(self._transport.disconnect, False)

    def ending(self) -> Ending:
        assert self._listener.ended.wait(LIMIT), f"no end of the connection within {LIMIT} s"
        return self._listener.ending


class PicowsClient:
    name = "picows"
    features = PICOWS_FEATURES

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop

    def open(self, url: str, protocols: Sequence[str] = (), *, compression: bool = False) -> PicowsSession:
        headers = {"Sec-WebSocket-Protocol": ", ".join(protocols)} if protocols else None
        try:
            transport, listener = self._loop.call(
                picows.ws_connect(PicowsListener, url, extra_headers=headers, max_frame_size=MAX_SIZE)
            )
        except picows.WSHandshakeError as refusal:
            raise Refused(refusal.response.status if refusal.response else None) from None
        assert isinstance(listener, PicowsListener)
        return PicowsSession(self._loop, transport, listener)


class PicowsEcho(PicowsListener):
    """The server's side: echoes, and obeys the commands."""

    def __init__(self, path: str, endings: Endings) -> None:
        super().__init__()
        self._path = path
        self._endings = endings

    def on_message(self, transport: picows.WSTransport, message: Message) -> None:
        if isinstance(message, bytes) or not message.startswith("!"):
            _picows_send(transport, message)
        elif message.startswith("!close "):
            code, reason = parse_close(message)
            transport.send_close(code, reason.encode())  # type: ignore[arg-type]  # any number goes, the stub says enum
        elif message == "!abort":
            transport.disconnect(False)
        elif message == "!fragments":
            _picows_fragments(transport, FRAGMENTED, text=True)
        elif message.startswith("!ping "):
            transport.send_ping(message.removeprefix("!ping ").encode())

    def on_pong(self, transport: picows.WSTransport, data: bytes) -> None:
        _picows_send(transport, f"pong {data.decode()}")

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self._endings.put(self._path, self.ending)


class PicowsServer:
    name = "picows"
    features = PICOWS_FEATURES

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop
        self._endings = Endings()
        self._server: asyncio.Server = loop.call(
            picows.ws_create_server(self._route, "127.0.0.1", 0, max_frame_size=MAX_SIZE)
        )
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _route(self, request: picows.WSUpgradeRequest) -> picows.WSUpgradeResponseWithListener:
        path = request.path.decode()
        if path.startswith("/forbidden"):
            refusal = picows.WSUpgradeResponse.create_error_response(403)
            return picows.WSUpgradeResponseWithListener(refusal, None)
        offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        chosen = next((one for one in map(str.strip, offered) if one in PROTOCOLS), None)
        answer = picows.WSUpgradeResponse.create_101_response(
            {"Sec-WebSocket-Protocol": chosen} if chosen is not None else None
        )
        return picows.WSUpgradeResponseWithListener(answer, PicowsEcho(path, self._endings))

    def ending(self, path: str) -> Ending:
        return self._endings.get(path)

    def close(self) -> None:
        async def close() -> None:
            self._server.close()

        self._loop.call(close())
