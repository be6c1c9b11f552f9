"""Every kind of connection behind one interface, so that each scenario is written once.

A :class:`Way` names flavour, carrier, TLS and role. Opening it gives a :class:`Live`: a connection that plain test code
drives from outside, with each call made as an application of that flavour makes it (on its event loop, or in a thread).
Every pending call must finish soon after the connection has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from tests.support import LIMIT
from tests.support.loops import LoopThread
from tests.support.waiting import in_thread, until
from tests.support.wire_peer import HANDSHAKE_KEY, WirePeer, header, request_head, response_head, tcp_pair
from watershed_mw import Watershed
from watershed_mw.core.states import Role

SERVER, CLIENT = Role.SERVER, Role.CLIENT
Setup = Callable[[Any], object]
Event = tuple[Any, ...]


class Log:
    """The calls of handlers, in order, from any thread."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._news = threading.Condition()

    def note(self, *event: Any) -> None:
        """Add an entry."""
        with self._news:
            self._events.append(event)
            self._news.notify_all()

    def listen(self, conn: Any, *events: str) -> None:
        """Record these events of a connection, by name and arguments."""
        for event in events:
            conn.on(event, partial(self.note, event))

    @property
    def events(self) -> list[Event]:
        """Everything so far."""
        with self._news:
            return list(self._events)

    def wait(self, condition: Callable[[list[Event]], object]) -> list[Event]:
        """Wait until ``condition(events)`` holds, and return the events."""
        with self._news:
            if not self._news.wait_for(lambda: condition(self._events), LIMIT):
                raise AssertionError(f"had {LIMIT} s; these events came: {_short(self._events)}")
            return list(self._events)

    def wait_for(self, *event: Any) -> list[Event]:
        """Wait until an entry that begins like this is there, and return all events."""
        return self.wait(lambda events: any(known[: len(event)] == event for known in events))

    def count(self, event: str) -> int:
        """The number of entries with this name."""
        return sum(known[0] == event for known in self.events)


def _short(events: list[Event]) -> str:
    text = ", ".join(repr(event)[:80] for event in events[:20])
    return f"{len(events)}: {text}"


class Live:
    """A connection in its flavour.

    Attributes:
        conn: the connection itself.
        endings: its events ``error``, ``connection_reset`` and ``end``; they make no connection push.
        log: its other events, as far as the test asked for them.
    """

    def __init__(self, conn: Any, endings: Log, log: Log, sock: socket.socket) -> None:
        self.conn = conn
        self.endings = endings
        self.log = log
        self._sock = sock
        self._calls: list[Future[Any]] = []

    # --- calls -----------------------------------------------------------------------------------------

    def begin(self, method: str, *args: Any, **options: Any) -> Future[Any]:
        """Start a call of a method of the connection; if the flavour awaits it, the result is awaited."""
        return self.do(lambda conn: getattr(conn, method)(*args, **options))

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Make such a call, and wait for it."""
        return self.begin(method, *args, **options).result(LIMIT)

    def do(self, work: Callable[[Any], Any]) -> Future[Any]:
        """Call ``work(conn)`` where the flavour makes its calls, and await the result if it is awaitable."""
        future = self._start(work)
        self._calls.append(future)
        return future

    def _start(self, work: Callable[[Any], Any]) -> Future[Any]:
        raise NotImplementedError

    def send(self, data: Any) -> None:
        self.call("send", data)

    def receive(self, timeout: float | None = LIMIT) -> str | bytes:
        message: str | bytes = self.call("receive", timeout)
        return message

    def on(self, event: str, handler: Callable[..., Any]) -> None:
        self.call("on", event, handler)

    def run(self) -> Future[tuple[int, str]]:
        """Push messages to the handlers; the future gets the close code and reason."""
        return self.begin("run")

    def collect(self) -> Future[list[str | bytes]]:
        """Iterate until the iteration ends; the future gets all messages."""
        raise NotImplementedError

    def flush(self) -> None:
        """Wait until everything started on the connection's own thread has finished."""

    # --- the end ---------------------------------------------------------------------------------------

    def ended(self) -> tuple[int, str]:
        """Wait for the ``end`` event, and return its code and reason."""
        *_, (_, code, reason) = self.endings.wait_for("end")
        return code, reason

    def gone(self) -> None:
        """Wait until the socket is closed."""
        until(lambda: self._sock.fileno() == -1, "the socket is closed")

    def close(self) -> None:
        """Destroy the connection; nothing of it may remain."""
        self.call("destroy")
        self.ended()
        for future in self._calls:
            with contextlib.suppress(Exception):
                future.exception(LIMIT)
            assert future.done(), "a call is still waiting on a connection that was destroyed"
        self.gone()
        names = [event[0] for event in self.endings.events]
        assert names in (["end"], ["error", "end"], ["connection_reset", "end"])


class LiveOnLoop(Live):
    """The asyncio flavour, on an event loop in another thread."""

    def __init__(self, conn: Any, endings: Log, log: Log, sock: socket.socket, loop: LoopThread) -> None:
        super().__init__(conn, endings, log, sock)
        self.loop = loop

    def _start(self, work: Callable[[Any], Any]) -> Future[Any]:
        async def on_loop() -> Any:
            result = work(self.conn)
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(on_loop(), self.loop.loop)

    def collect(self) -> Future[list[str | bytes]]:
        async def iterate(conn: Any) -> list[str | bytes]:
            return [message async for message in conn]

        return self.do(iterate)

    def flush(self) -> None:
        self.loop.call(asyncio.sleep(0))


class LiveInThreads(Live):
    """The threads flavour: every call in a thread of its own."""

    def _start(self, work: Callable[[Any], Any]) -> Future[Any]:
        return in_thread(lambda: work(self.conn))

    def collect(self) -> Future[list[str | bytes]]:
        return self.do(list)


class LiveInBackground(LiveInThreads):
    """The threads flavour on the process's event-loop thread."""

    def run(self) -> Future[tuple[int, str]]:
        over: Future[tuple[int, str]] = Future()
        # Registered last: once the future has its result, the other handlers have run.
        self.conn.on("end", lambda code, reason: over.set_result((code, reason)))
        self.call("run_in_background")
        return over


@dataclass(frozen=True)
class Way:
    """A kind of connection."""

    flavour: str
    carrier: str
    tls: bool
    role: Role

    @property
    def pulls(self) -> bool:
        """Whether messages can be pulled."""
        return self.flavour != "background"

    @property
    def on_loop(self) -> bool:
        """Whether it is the asyncio flavour."""
        return self.flavour in ("asyncio", "uvloop")

    @property
    def opposite(self) -> Way:
        """Another flavour in the other role, over the same kind of stream."""
        role = CLIENT if self.role is SERVER else SERVER
        if self.on_loop:
            return Way("threads", "socket", self.tls, role)
        return Way("asyncio", "streams", self.tls, role)

    def __str__(self) -> str:
        return f"{self.flavour}-{self.carrier}-{'tls' if self.tls else 'plain'}-{self.role.value}"


def _all() -> Iterable[Way]:
    for role, tls in itertools.product((SERVER, CLIENT), (False, True)):
        for flavour, carrier in itertools.product(("asyncio", "uvloop"), ("streams", "transport")):
            yield Way(flavour, carrier, tls, role)
        for flavour in ("threads", "background"):
            yield Way(flavour, "socket", tls, role)


ALL: Final = tuple(_all())
# Each flavour and carrier in both roles, one plain and one over TLS: enough if the role does not matter.
EACH: Final = tuple(
    Way(flavour, carrier, tls, CLIENT if (place % 2 == 0) is tls else SERVER)
    for tls in (False, True)
    for place, (flavour, carrier) in enumerate(dict.fromkeys((way.flavour, way.carrier) for way in ALL))
)
PULLING: Final = tuple(way for way in EACH if way.pulls)
# One of each flavour, plain and over TLS, for slow scenarios and those that transfer a lot.
FEW: Final = (
    Way("asyncio", "streams", False, SERVER),
    Way("asyncio", "transport", True, CLIENT),
    Way("uvloop", "transport", False, CLIENT),
    Way("uvloop", "streams", True, SERVER),
    Way("threads", "socket", False, SERVER),
    Way("threads", "socket", True, CLIENT),
    Way("background", "socket", False, CLIENT),
    Way("background", "socket", True, SERVER),
)
FEW_PULLING: Final = tuple(way for way in FEW if way.pulls)
ON_LOOP: Final = tuple(way for way in FEW if way.on_loop)
IN_THREADS: Final = tuple(way for way in ALL if way.flavour == "threads")
IN_BACKGROUND: Final = tuple(way for way in ALL if way.flavour == "background")


class HeadReader(asyncio.Protocol):
    """Collects an HTTP head, as code that works on bare transports does."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._loop = asyncio.get_running_loop()
        self.complete: asyncio.Future[None] = self._loop.create_future()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if b"\r\n\r\n" in self._data and not self.complete.done():
            self.complete.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.complete.done():
            self.complete.set_exception(exc or EOFError("the stream ended within the head"))

    async def head(self) -> bytes:
        """The head, and any bytes after it."""
        await self.complete
        return bytes(self._data)


@dataclass(frozen=True)
class Opening:
    """How our end is opened, in addition to its kind.

    Attributes:
        shed: the factory.
        setup: called with the connection as soon as it exists, before anything can have arrived.
        record: events that the log notes.
        accept: options of ``accept``.
        offer: subprotocols that a client offers.
    """

    shed: Watershed
    setup: Setup | None = None
    record: tuple[str, ...] = ()
    accept: dict[str, Any] | None = None
    offer: tuple[str, ...] | None = None

    def request(self, key: str) -> bytes:
        return self.shed.request_head("ws://127.0.0.1/chat", key, self.offer)

    def upgrade(self, role: Role, head: bytes, carrier: Any, request: bytes, key: str) -> Any:
        """The connection, with the test's handlers registered."""
        if role is SERVER:
            conn = self.shed.accept(head, carrier, **(self.accept or {}))
        else:
            conn = self.shed.connect(head, carrier, key=key, request=request)
        return conn

    def prepare(self, conn: Any) -> tuple[Log, Log]:
        endings, log = Log(), Log()
        endings.listen(conn, "error", "connection_reset", "end")
        log.listen(conn, *self.record)
        if self.setup is not None:
            self.setup(conn)
        return endings, log


def open_in_thread(way: Way, sock: socket.socket, opening: Opening, context: ssl.SSLContext | None) -> Live:
    """Open our end on a blocking socket, in the calling thread."""
    key = opening.shed.generate_key()
    request = opening.request(key)
    sock.settimeout(LIMIT)
    if context is not None:
        name = None if way.role is SERVER else "127.0.0.1"
        sock = context.wrap_socket(sock, server_side=way.role is SERVER, server_hostname=name)
    if way.role is CLIENT:
        sock.sendall(request)
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(4096)
        if not data:
            raise EOFError("the stream ended within the head")
        head += data
    conn = opening.upgrade(way.role, head, sock, request, key)
    kind = LiveInThreads if way.flavour == "threads" else LiveInBackground
    return kind(conn, *opening.prepare(conn), sock)


async def open_on_loop(
    way: Way, sock: socket.socket, opening: Opening, context: ssl.SSLContext | None, loop: LoopThread
) -> Live:
    """Open our end on the running event loop."""
    key = opening.shed.generate_key()
    request = opening.request(key)
    running = asyncio.get_running_loop()
    sock.setblocking(False)
    reader = asyncio.StreamReader()
    protocol: Any = asyncio.StreamReaderProtocol(reader) if way.carrier == "streams" else HeadReader()
    if way.role is SERVER:
        transport, _ = await running.connect_accepted_socket(lambda: protocol, sock, ssl=context)
    else:
        name = "127.0.0.1" if context else None
        transport, _ = await running.create_connection(lambda: protocol, sock=sock, ssl=context, server_hostname=name)
        transport.write(request)
    if way.carrier == "streams":
        carrier: Any = (reader, asyncio.StreamWriter(transport, protocol, reader, running))
        head = await reader.readuntil(b"\r\n\r\n")
    else:
        carrier = transport
        head = await protocol.head()
    conn = opening.upgrade(way.role, head, carrier, request, key)
    return LiveOnLoop(conn, *opening.prepare(conn), sock, loop)


class Opener:
    """Opens connections, and closes them again.

    Args:
        tls_contexts: TLS contexts (client, server).
        loops: event loops by flavour.
    """

    def __init__(self, tls_contexts: tuple[ssl.SSLContext, ssl.SSLContext], loops: Callable[[str], LoopThread]) -> None:
        self._contexts = dict(zip((CLIENT, SERVER), tls_contexts, strict=True))
        self._loops = loops
        self._opened: list[Live | WirePeer] = []

    def _open(self, way: Way, sock: socket.socket, opening: Opening) -> Future[Any]:
        context = self._contexts[way.role] if way.tls else None
        if way.on_loop:
            loop = self._loops(way.flavour)
            return asyncio.run_coroutine_threadsafe(open_on_loop(way, sock, opening, context, loop), loop.loop)
        return in_thread(lambda: open_in_thread(way, sock, opening, context))

    def open(
        self,
        way: Way,
        *,
        setup: Setup | None = None,
        record: tuple[str, ...] = (),
        early: Callable[[WirePeer], bytes] | None = None,
        small: bool = False,
        fields: tuple[tuple[str, str], ...] = (),
        accept: dict[str, Any] | None = None,
        offer: tuple[str, ...] | None = None,
        **options: Any,
    ) -> tuple[Live, WirePeer]:
        """Open a connection with a hand-driven peer at its other end.

        Args:
            way: the kind of our connection.
            setup, record, accept, offer: as in :class:`Opening`.
            early: frames that the peer sends in the same segment as its part of the handshake.
            small: whether the kernel's buffers are small.
            fields: header fields that the peer adds to its part of the handshake.
            options: options of the factory.
        """
        ours, theirs = tcp_pair(small=small)
        opening = self._open(way, ours, Opening(Watershed(**options), setup, record, accept, offer))
        role = CLIENT if way.role is SERVER else SERVER
        if way.tls:
            context = self._contexts[role]
            name = "127.0.0.1" if role is CLIENT else None
            theirs = context.wrap_socket(theirs, server_side=role is SERVER, server_hostname=name)
        peer = WirePeer(theirs, role)
        self._opened.append(peer)
        frames = early(peer) if early is not None else b""
        if role is CLIENT:
            peer.write(request_head(*fields), frames)
            head = peer.read_head()
            assert head.startswith(b"HTTP/1.1 101 ")
        else:
            key = header(peer.read_head(), "sec-websocket-key")
            peer.write(response_head(key or HANDSHAKE_KEY, *fields), frames)
        live: Live = opening.result(LIMIT)
        self._opened.append(live)
        return live, peer

    def open_both(
        self,
        way: Way,
        other: Way,
        *,
        setup: Setup | None = None,
        other_setup: Setup | None = None,
        record: tuple[str, ...] = (),
        other_record: tuple[str, ...] = (),
        small: bool = False,
        **options: Any,
    ) -> tuple[Live, Live]:
        """Open two connections of this package, one at each end of a stream."""
        ours, theirs = tcp_pair(small=small)
        shed = Watershed(**options)
        openings = [
            self._open(way, ours, Opening(shed, setup, record)),
            self._open(other, theirs, Opening(shed, other_setup, other_record)),
        ]
        one, two = (opening.result(LIMIT) for opening in openings)
        self._opened += [one, two]
        return one, two

    def loop(self, flavour: str = "asyncio") -> LoopThread:
        """The event loop of a flavour."""
        return self._loops(flavour)

    def close(self) -> None:
        """Close everything; raise the first error once all is closed."""
        with contextlib.ExitStack() as stack:
            for opened in self._opened:
                stack.callback(opened.close)
            self._opened.clear()


def with_role(ways: Iterable[Way], role: Role) -> tuple[Way, ...]:
    """The same kinds, all in one role."""
    return tuple(dict.fromkeys(replace(way, role=role) for way in ways))


async def tasks_are_gone() -> bool:
    """Whether the running loop has no other task."""
    for _ in range(100):
        if len(asyncio.all_tasks()) == 1:
            return True
        await asyncio.sleep(0.005)
    return False


Link = Callable[..., tuple[Live, WirePeer]]
Both = Callable[..., tuple[Live, Live]]
Work = Coroutine[Any, Any, Any]
