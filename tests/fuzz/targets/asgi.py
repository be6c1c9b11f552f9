"""Targets for ASGI: any messages of a server, any calls of an application, any bytes of a client.

Both modes run as in production, on an event loop that is stepped by hand: nothing waits for a fixed time, and a task
that is not done after a number of steps counts as hanging.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState
from websockets.frames import Opcode
from websockets.protocol import Protocol as Peer
from websockets.protocol import Side
from websockets.protocol import State as PeerState

from tests.fuzz.source import Source, mutated
from tests.fuzz.targets.http import REQUEST_HEAD
from watershed_mw import ConnectionClosed, HandshakeError, LocalProtocolError, UnsupportedServerError, WatershedASGI
from watershed_mw.core.frames.codec import encode_frame
from watershed_mw.core.limits import Limits
from watershed_mw.core.message_protocol import MessageProtocol
from watershed_mw.core.states import State
from watershed_mw.uvicorn import WatershedProtocol

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

# What an application may be given for a call that is wrong, comes too late, or cannot be done here.
APPLICATION_SEES = (
    ConnectionClosed, HandshakeError, LocalProtocolError, UnsupportedServerError, RuntimeError, ValueError, TypeError,
)  # fmt: skip
# Steps of the loop that an application, or the end of a connection, may take.
MOST_STEPS = 300


class Marker(Exception):  # no error of anybody's
    """An exception that an application raises by itself."""


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: _unhandled.append(context))
    return loop


_unhandled: list[dict[str, Any]] = []


def _step(loop: asyncio.AbstractEventLoop, times: int = 1) -> None:
    for _ in range(times):
        loop.call_soon(loop.stop)
        loop.run_forever()


def _settle(loop: asyncio.AbstractEventLoop, tasks: Callable[[], set[asyncio.Task[Any]]]) -> None:
    """Step until no task is left."""
    for _ in range(MOST_STEPS):
        if not tasks():
            return
        _step(loop)
    left = tasks()
    for task in left:
        task.cancel()
    _step(loop, 20)
    raise AssertionError(f"still running after {MOST_STEPS} steps: {left}")


def _check_unhandled() -> None:
    unhandled = list(_unhandled)
    _unhandled.clear()
    assert not unhandled, unhandled


# --- the states of a connection over messages ------------------------------------------------------------------


def message_protocol(source: Source) -> None:
    """At most one Close, nothing after it, and a state that agrees with the messages."""
    subject = MessageProtocol(Limits(max_message_size=50, max_message_rate=20), 0.0)
    now, closes = 0.0, 0
    while source.remaining:
        now += source.integer(0, 3) / 10
        with contextlib.suppress(ConnectionClosed, LocalProtocolError):
            closes += _act(subject, source, now)
        assert closes <= 1
        assert subject.unsent_size >= 0
        assert subject.ended == (subject.state in (State.ENDING, State.CLOSED))
        if subject.ended:
            assert isinstance(subject.close_code, int)
            assert isinstance(subject.close_reason, str)


def _act(subject: MessageProtocol, source: Source, now: float) -> int:
    match source.integer(0, 9):
        case 0:
            subject.send_text(source.text(10))
        case 1:
            subject.send_binary(source.data(10))
        case 2:
            subject.close(source.integer(990, 5005), source.text(130), now)
        case 3:
            subject.abort()
        case 4:
            subject.receive_disconnect(source.integer(0, 5000), source.text(5))
        case 5 | 6:
            item = subject.next_to_send()
            if item is not None:
                subject.taken()
                return int(isinstance(item, tuple))
        case _:
            subject.receive_message(source.text(60) if source.boolean() else source.data(60), now)
    return 0


# --- the door for any ASGI server ------------------------------------------------------------------------------


def _server_message(source: Source) -> Message:
    """A message from a server to an application; some are odd, as with real servers."""
    match source.integer(0, 6):
        case 0:
            return {"type": "websocket.connect"}
        case 1:
            message: Message = {"type": "websocket.disconnect"}
            if source.boolean():
                message["code"] = source.pick((1000, 1001, 1005, 1006, None, 4000, 0))
            if source.boolean():
                message["reason"] = source.pick(("", "bye", None, "é" * 40))
            return message
        case 2:
            return {"type": "websocket.receive", "text": None, "bytes": source.data(40)}
        case 3:
            return {"type": "websocket.receive", "bytes": source.data(40)}
        case 4:
            return {"type": "websocket.receive", "text": source.text(40), "bytes": None}
        case 5:
            return {"type": source.pick(("websocket.receive", "websocket.other"))}
        case _:
            return {"type": "websocket.receive", "text": source.text(40)}


class _Server:
    """A server whose client does what the input says, and leaves after its messages."""

    def __init__(self, source: Source) -> None:
        self.sent: list[Message] = []
        self._messages = [_server_message(source) for _ in range(source.integer(0, 8))]
        if not source.rarely():
            self._messages.insert(0, {"type": "websocket.connect"})
        self._fails_at = source.integer(0, 40)
        self._lazy = source.boolean()
        self._gone = False

    async def receive(self) -> Message:
        if self._lazy:
            await asyncio.sleep(0)
        if self._messages:
            message = self._messages.pop(0)
            self._gone = self._gone or message["type"] == "websocket.disconnect"
            return message
        if self._gone:
            await asyncio.get_running_loop().create_future()  # as servers do: one disconnect, then nothing
        self._gone = True
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(self, message: Message) -> None:
        if self._lazy:
            await asyncio.sleep(0)
        if len(self.sent) >= self._fails_at:
            raise OSError("the client has gone")
        self.sent.append(message)


def _calls(source: Source) -> list[tuple[str, Any]]:
    """An application's calls on its connection, one by one."""
    calls: list[tuple[str, Any]] = []
    for _ in range(source.integer(0, 8)):
        match source.integer(0, 9):
            case 0:
                calls.append(("send", source.text(20)))
            case 1:
                calls.append(("send", source.data(20)))
            case 2:
                calls.append(("end", (source.text(10), source.pick((1000, 1001, 1005, 1011, 3000, 4999, 1006, 0)))))
            case 3:
                calls.append(("on", source.pick(("text", "binary", "end", "error", "ping", "drain"))))
            case 4:
                calls.append(("run", None))
            case 5:
                calls.append(("raise", source.pick((Marker, ConnectionClosed, LocalProtocolError))))
            case 6:
                calls.append(("spawn", source.pick(("receive", "run", "wait_closed"))))
            case 7:
                calls.append(("iterate", source.integer(1, 5)))
            case _:
                calls.append(("receive", None))
    return calls


async def _call(connection: Any, name: str, argument: Any, spawned: list[asyncio.Task[Any]]) -> None:
    match name:
        case "send":
            await connection.send(argument)
        case "end":
            await connection.end(argument[0], code=argument[1])
        case "on":
            connection.on(argument, lambda *_: None)
        case "run" | "receive":
            await getattr(connection, name)()
        case "spawn":
            spawned.append(asyncio.ensure_future(getattr(connection, argument)()))
        case "iterate":
            async for _ in connection:
                argument -= 1
                if not argument:
                    break


def portable(source: Source) -> None:
    """A portable connection ends with its client, and sends valid ASGI messages in a valid order."""
    loop = _loop()
    calls = _calls(source)
    answer = source.pick(("accept", "accept", "accept", "reject", "nothing", "raise"))
    careless = source.boolean()
    server = _Server(source)
    spawned: list[asyncio.Task[Any]] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        upgrade = scope["watershed"]
        if answer == "raise":
            raise Marker
        if answer == "reject":
            await upgrade.reject(404, b"no")
        if answer != "accept":
            return
        connection = await upgrade.accept()
        for name, argument in calls:
            if name == "raise":
                raise argument(1000, "") if argument is ConnectionClosed else argument("raised by the application")
            try:
                await _call(connection, name, argument, spawned)
            except APPLICATION_SEES:
                if careless:
                    raise

    headers = [(name.lower().encode(), value.encode()) for name, value in _GOOD_FIELDS]
    scope: Message = {"type": "websocket", "path": "/", "headers": headers, "subprotocols": [], "http_version": "1.1"}
    scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}
    if source.boolean():
        scope["extensions"] = {"websocket.http.response": {}}
    options = {"max_message_size": 30, "max_queued_messages": 2, "close_timeout": 0.05}
    task = loop.create_task(WatershedASGI(app, **options)(scope, server.receive, server.send))  # type: ignore[arg-type]
    try:
        # A server that cannot send any more ends after close_timeout, which no step brings nearer.
        for _ in range(MOST_STEPS):
            if task.done():
                break
            _step(loop)
        else:
            _run_until(loop, task)
        error = task.exception()
        assert error is None or isinstance(error, (Marker, OSError, *APPLICATION_SEES)), error
    finally:
        task.cancel()
        for other in spawned:
            other.cancel()
        _step(loop, 3)
    _settle(loop, lambda: asyncio.all_tasks(loop))
    for other in spawned:
        if not other.cancelled() and (error := other.exception()) is not None:
            assert isinstance(error, APPLICATION_SEES), error
    _check_sequence(server.sent)
    _check_unhandled()


def _run_until(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """A second of real time for anything that waits for close_timeout."""
    loop.run_until_complete(asyncio.wait([task], timeout=1.0))
    assert task.done(), f"still running: {task}"


_GOOD_FIELDS = (
    ("Host", "a.example"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
)


def _check_sequence(sent: list[Message]) -> None:
    """``websocket.accept``, messages, one close; or one refusal (ASGI, WebSocket part)."""
    kinds = [message["type"] for message in sent]
    if not kinds:
        return
    if kinds[0] == "websocket.http.response.start":
        assert set(kinds[1:]) <= {"websocket.http.response.body"}, kinds
        return
    assert kinds[0] in ("websocket.accept", "websocket.close"), kinds
    assert "websocket.close" not in kinds[:-1], kinds
    for message in sent[1:]:
        assert message["type"] in ("websocket.send", "websocket.close"), kinds
        if message["type"] == "websocket.send":
            assert isinstance(message.get("text", ""), str)
            assert isinstance(message.get("bytes", b""), bytes)
            assert ("text" in message) is not ("bytes" in message)
        else:
            assert isinstance(message["code"], int)
            assert isinstance(message.get("reason", ""), str)


# --- the door under uvicorn ------------------------------------------------------------------------------------


class _Transport(asyncio.Transport):
    """A plain transport in memory."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"peername": ("192.0.2.1", 5), "sockname": ("192.0.2.2", 80)})
        self.written = bytearray()
        self._loop = loop
        self._protocol: Any = None
        self._closing = False
        self._eof = False
        self.paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._eof, "bytes after the end of the stream"
        if not self._closing:
            self.written += data

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        self.close()

    def _lose(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_reading(self) -> bool:
        return not self.paused

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof = True

    def feed(self, data: bytes) -> None:
        """Pass received bytes to the protocol, as transports do."""
        if self._closing or not data:
            return
        if not isinstance(self._protocol, asyncio.BufferedProtocol):
            self._protocol.data_received(data)
            return
        while data and not self._closing:
            buffer: Any = self._protocol.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            data = data[size:]
            self._protocol.buffer_updated(size)


class _Records(logging.Handler):
    """The tracebacks that the server logs, of application failures and of anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.errors.append(record.exc_info[1])


def _asgi_message(source: Source) -> Message:
    """A message of an application; some are nonsense."""
    match source.integer(0, 6):
        case 0:
            message: Message = {"type": "websocket.accept"}
            if source.rarely():
                message["subprotocol"] = source.pick((None, "chat", "", "a b", "x\r\ny: z"))
            if source.rarely():
                message["headers"] = [(source.data(8) or b"x", source.data(8))]
            return message
        case 1:
            return {"type": "websocket.send", "text": source.text(300)}
        case 2:
            return {"type": "websocket.send", "bytes": source.data(300)}
        case 3:
            code = source.pick((1000, 1001, 1006, 4000, 0, 1005, 99999))
            return {"type": "websocket.close", "code": code, "reason": source.text(130)}
        case 4:
            status = source.pick((200, 204, 304, 404, 599, 600, 100, 0))
            return {"type": "websocket.http.response.start", "status": status, "headers": [(b"x", source.data(5))]}
        case 5:
            return {"type": "websocket.http.response.body", "body": source.data(50), "more_body": source.boolean()}
        case _:
            return {
                "type": source.pick(("websocket.accept", "websocket.send", "websocket.close", "http.response.start"))
            }


def uvicorn(source: Source) -> None:
    """Any bytes of a client and any messages of an application: all output is HTTP, then frames, and all tasks end."""
    loop = _loop()
    script = [_asgi_message(source) if source.boolean() else None for _ in range(source.integer(0, 8))]
    ending = source.pick(("return", "raise", "receive on"))
    records = _Records()
    log = logging.getLogger("uvicorn.error")
    log.propagate = False
    log.handlers = [records]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        for message in script:
            if message is None:
                if (await receive())["type"] == "websocket.disconnect":
                    return
            else:
                await send(message)
        if ending == "raise":
            raise Marker
        while ending == "receive on" and (await receive())["type"] != "websocket.disconnect":
            pass

    state = ServerState()
    front = source.pick((H11Protocol, HttpToolsProtocol))
    protocol = front(_configured(app, front), state, {}, loop)
    transport = _Transport(loop)
    transport.set_protocol(protocol)
    try:
        loop.call_soon(protocol.connection_made, transport)
        loop.call_soon(transport.feed, mutated(source, REQUEST_HEAD, 1) + b"\r\n")
        _step(loop)
        while source.remaining and not transport.is_closing():
            loop.call_soon(transport.feed, _client_bytes(source))
            _step(loop, source.integer(1, 3))
        _step(loop, 3)
    finally:
        loop.call_soon(transport.abort)
        _step(loop, 3)
    _settle(loop, lambda: asyncio.all_tasks(loop))
    _step(loop)
    _check_unhandled()
    for error in records.errors:
        assert isinstance(error, (Marker, *APPLICATION_SEES)), repr(error)
    assert not state.connections, state.connections
    assert not state.tasks
    _check_answer(bytes(transport.written))


@functools.cache
def _config(front: type) -> Config:
    config = Config("none:none", http=front, ws=WatershedProtocol, lifespan="off", interface="asgi3", log_config=None)
    config.loaded = True
    config.http_protocol_class, config.ws_protocol_class = front, WatershedProtocol
    config.encoded_headers = []
    return config


def _configured(app: Any, front: type) -> Config:
    config = _config(front)
    config.loaded_app = app
    return config


def _client_bytes(source: Source) -> bytes:
    if source.boolean():
        return source.data(200)
    size = source.integer(0, 4)
    opcode = source.pick((1, 2, 8, 9, 10, 0))
    payload = (3000).to_bytes(2, "big") if opcode == 8 else b"x" * (200 * size if opcode < 3 else size)
    return encode_frame(opcode, payload, b"\1\2\3\4", 0x80)


def _check_answer(written: bytes) -> None:
    """The output as two other packages parse it on the client's side."""
    if not written:
        return
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "-"), ("Upgrade", "websocket")]))
    client.send(h11.EndOfMessage())
    client.receive_data(written)
    event = client.next_event()
    while isinstance(event, h11.InformationalResponse) and event.status_code != 101:
        event = client.next_event()
    if isinstance(event, h11.InformationalResponse):
        peer = Peer(Side.CLIENT, state=PeerState.OPEN, max_size=None)
        peer.receive_data(client.trailing_data[0])
        assert peer.parser_exc is None, peer.parser_exc
        frames = peer.events_received()
        closes = [index for index, frame in enumerate(frames) if getattr(frame, "opcode", None) is Opcode.CLOSE]
        assert len(closes) <= 1
        return
    assert isinstance(event, h11.Response), (event, written[:200])


TARGETS = (message_protocol, portable, uvicorn)
