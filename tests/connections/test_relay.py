"""The raw relay between a client and a server: bytes, ends, limits, and a Close between two frames."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.loops import LoopThread
from tests.support.waiting import in_thread, until
from tests.support.wire_peer import KEY, tcp_pair
from watershed_mw.core.codes import encode_close
from watershed_mw.core.frames.codec import encode_frame, mask
from watershed_mw.errors import ConnectionClosed, LocalProtocolError
from watershed_mw.relay import Relay, RelayEnd, RelayResult, live_relays, relay
from watershed_mw.sockets.tls_views import detach

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
TEXT, BINARY, CLOSE = 0x1, 0x2, 0x8
# Seconds; what is to come within them comes at once, or a test is slow.
SHORT = 0.08
EVERYWHERE = pytest.mark.parametrize("rig", ["asyncio", "uvloop", "thread"], indirect=True)
ONCE = pytest.mark.parametrize("rig", ["uvloop"], indirect=True)  # what takes time, or is the same on any loop


class Rig:
    """A hand-driven client and server, with a relay between them."""

    def __init__(self, flavour: str, loops: Callable[[str], LoopThread]) -> None:
        self.flavour = flavour
        self._loops = loops
        self._sockets: list[socket.socket] = []
        self.relays: list[Relay] = []

    def pair(self, *, small: bool = False) -> tuple[socket.socket, socket.socket]:
        pair = tcp_pair(small=small)
        self._sockets += pair
        return pair

    def between(self, a: Any, b: Any, **options: Any) -> Relay:
        """The relay, created as its flavour requires; its result must be available soon after the test."""
        if self.flavour == "thread":
            made = relay(a, b, **options)
        else:

            async def make() -> Relay:
                return relay(a, b, **options)

            made = self.loop.call(make())
        self.relays.append(made)
        return made

    @property
    def loop(self) -> LoopThread:
        return self._loops(self.flavour)

    def open(self, *, small: bool = False, **options: Any) -> tuple[socket.socket, socket.socket, Relay]:
        client, a = self.pair(small=small)
        server, b = self.pair(small=small)
        return client, server, self.between(a, b, **options)

    def close(self) -> None:
        for made in self.relays:
            made.abort()
            made.wait(LIMIT)
        for sock in self._sockets:
            sock.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def rig(request: pytest.FixtureRequest, loops: Callable[[str], LoopThread]) -> Iterator[Rig]:
    rig = Rig(request.param, loops)
    yield rig
    rig.close()
    assert not set(live_relays()) & set(rig.relays)


def masked(opcode: int, payload: bytes) -> bytes:
    return encode_frame(opcode, payload, KEY)


def plain(opcode: int, payload: bytes) -> bytes:
    return encode_frame(opcode, payload, None)


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"the stream ended after {data!r}"
        data += piece
    return data


def to_the_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(2**16), b""))


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def taken_from(sock: socket.socket, most: int) -> bytes:
    """How much of an endless stream the other end accepts, until it accepts no more for a while."""
    block, sent = bytes(range(256)) * 256, bytearray()
    sock.setblocking(False)
    while select.select([], [sock], [], 0.05)[1]:
        with contextlib.suppress(BlockingIOError):
            sent += block[: sock.send(block)]
        assert len(sent) < most, "it takes without end"
    sock.settimeout(LIMIT)
    return bytes(sent)


def unmasked(frame: bytes) -> bytes:
    """A small masked frame, unmasked."""
    assert frame[1] & 0x80
    payload = mask(frame[6:], 0, len(frame) - 6, frame[2:6], 0)
    return bytes([frame[0], frame[1] & 0x7F]) + payload


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- bytes, and ends ---------------------------------------------------------------------------------------------


@EVERYWHERE
def test_both_directions_pass_unchanged(rig: Rig) -> None:
    client, server, made = rig.open()
    client.sendall(b"no frames at all")
    assert exactly(server, 16) == b"no frames at all"
    server.sendall(b"\xff" * 1000)
    assert exactly(client, 1000) == b"\xff" * 1000
    assert made in live_relays()
    assert not made.gone
    client.close()
    assert to_the_end(server) == b""
    server.close()
    result = made.wait(LIMIT)
    assert (result.end, result.to_server, result.to_client) == (RelayEnd.ENDED, 16, 1000)
    assert 0 < result.seconds < LIMIT
    assert made.gone
    assert made.result is result


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_half_close_leaves_the_other_direction_open(rig: Rig, first: str) -> None:
    client, server, made = rig.open()
    one, other = (client, server) if first == "client" else (server, client)
    one.sendall(b"the last")
    one.shutdown(socket.SHUT_WR)
    assert to_the_end(other) == b"the last"
    other.sendall(b"an answer")
    assert exactly(one, 9) == b"an answer"
    other.close()
    assert to_the_end(one) == b""
    assert made.wait(LIMIT).end is RelayEnd.ENDED


@ONCE
def test_silence_before_the_first_end_does_not_shorten_the_wait_for_the_second(rig: Rig) -> None:
    client, server, made = rig.open(close_timeout=4 * SHORT)
    time.sleep(5 * SHORT)  # the silence itself
    client.shutdown(socket.SHUT_WR)
    assert to_the_end(server) == b""
    assert not select.select([client], [], [], SHORT)[0]
    server.sendall(b"an answer")
    assert exactly(client, 9) == b"an answer"
    server.close()
    assert made.wait(LIMIT).end is RelayEnd.ENDED


@ONCE
def test_end_listeners_are_called(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    client, server, made = rig.open()
    heard = threading.Event()

    def fail() -> None:
        raise IndexError("not of the relay's own")

    made.when_gone(fail)
    made.when_gone(heard.set)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            made.wait(0.001)
    assert len(made._outcome._listeners) == 2
    client.close()
    server.close()
    assert heard.wait(LIMIT)
    until(lambda: "not of the relay's own" in caplog.text)


@ONCE
def test_the_wait_for_the_second_end_is_bounded(rig: Rig) -> None:
    client, server, made = rig.open(close_timeout=SHORT)
    client.shutdown(socket.SHUT_WR)
    assert to_the_end(server) == b""
    assert made.wait(LIMIT).end is RelayEnd.ENDED
    assert to_the_end(client) == b""


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_reset_ends_the_other_side_after_earlier_bytes(rig: Rig, first: str) -> None:
    client, server, made = rig.open()
    one, other = (client, server) if first == "client" else (server, client)
    one.sendall(b"before")
    assert exactly(other, 6) == b"before"
    reset(one)
    assert to_the_end(other) == b""
    other.close()
    assert made.wait(LIMIT).end is RelayEnd.RESET


def test_a_reset_noticed_while_writing_loses_no_earlier_bytes(rig: Rig) -> None:
    client, server, made = rig.open()

    async def at_once() -> None:
        # The loop will find both sides readable, the server's first.
        server.sendall(b"to nobody")
        client.sendall(b"the last")
        reset(client)

    rig.loop.call(at_once())
    assert to_the_end(server) == b"the last"
    server.close()
    assert made.wait(LIMIT).end is RelayEnd.RESET


def test_a_reset_may_arrive_together_with_bytes(rig: Rig) -> None:
    client, server, made = rig.open()

    async def at_once() -> None:
        client.sendall(b"the last")
        reset(client)

    rig.loop.call(at_once())
    assert to_the_end(server) == b"the last"
    server.close()
    assert made.wait(LIMIT).end is RelayEnd.RESET


@ONCE
def test_a_reset_is_noticed_while_the_other_side_does_not_read(rig: Rig) -> None:
    client, server, made = rig.open(small=True, close_timeout=SHORT)
    sent = taken_from(server, 2**24)
    reset(client)
    assert made.wait(LIMIT).end is RelayEnd.RESET
    assert made.result is not None
    assert made.result.to_client <= len(sent)


@pytest.mark.parametrize("slow", ["client", "server"])
def test_a_slow_reader_pauses_the_other_side_within_bounds(rig: Rig, slow: str) -> None:
    client, server, _ = rig.open(small=True)
    reader, writer = (client, server) if slow == "client" else (server, client)
    sent = taken_from(writer, 2**21)  # the kernel's share of it is some hundred KiB
    rest = os.urandom(2**21)

    def finish() -> None:
        writer.sendall(rest)
        writer.shutdown(socket.SHUT_WR)

    writing = in_thread(finish)
    assert hashlib.sha256(to_the_end(reader)).digest() == hashlib.sha256(sent + rest).digest()
    writing.result(LIMIT)


@EVERYWHERE
def test_early_bytes_pass_first(rig: Rig) -> None:
    (client, a), (server, b) = rig.pair(), rig.pair()
    made = rig.between(detach(a, b"from the client, "), detach(b, b"from the server, "))
    client.sendall(b"and more")
    server.sendall(b"and more")
    assert exactly(server, 25) == b"from the client, and more"
    assert exactly(client, 25) == b"from the server, and more"
    client.close()
    server.close()
    assert made.wait(LIMIT).to_server == 25


# --- goodbyes ----------------------------------------------------------------------------------------------------

GOODBYE = plain(CLOSE, encode_close(1012, "restart"))


def answer(client: socket.socket, server: socket.socket) -> None:
    """Both peers take part in the closing handshake; then nothing more may arrive."""
    client.sendall(masked(CLOSE, b"\x03\xe8"))
    server.sendall(plain(CLOSE, b"\x03\xe8"))
    assert to_the_end(client) == b""
    assert to_the_end(server) == b""
    client.close()
    server.close()


def test_start_close_sends_its_close_between_two_frames(rig: Rig) -> None:
    client, server, made = rig.open()
    client.sendall(masked(TEXT, b"hello"))
    assert exactly(server, 11) == masked(TEXT, b"hello")
    made.start_close("restart", code=1012)
    assert exactly(client, len(GOODBYE)) == GOODBYE
    assert unmasked(exactly(server, len(GOODBYE) + 4)) == GOODBYE
    answer(client, server)
    result = made.wait(LIMIT)
    assert (result.end, result.to_server, result.to_client) == (RelayEnd.DRAINED, 11, 0)


@pytest.mark.parametrize("came", [1, 3, 8, 5000])
def test_start_close_in_the_middle_of_a_frame_waits_for_its_end(rig: Rig, came: int) -> None:
    client, server, made = rig.open()
    up, down = masked(BINARY, bytes(9000)), plain(BINARY, bytes(9000))
    client.sendall(up[:came])
    server.sendall(down[:came])
    assert exactly(server, came) == up[:came]
    assert exactly(client, came) == down[:came]
    made.start_close("restart", code=1012)
    until(lambda: made.ending)
    client.sendall(up[came:] + masked(TEXT, b"too late"))
    server.sendall(down[came:] + plain(TEXT, b"too late"))
    assert exactly(server, len(up) - came) == up[came:]
    assert exactly(client, len(down) - came) == down[came:]
    assert exactly(client, len(GOODBYE)) == GOODBYE
    assert unmasked(exactly(server, len(GOODBYE) + 4)) == GOODBYE
    answer(client, server)
    result = made.wait(LIMIT)
    assert (result.end, result.to_server, result.to_client) == (RelayEnd.DRAINED, len(up), len(down))


def test_start_close_in_the_middle_of_a_close_adds_nothing(rig: Rig) -> None:
    client, server, made = rig.open()
    close = masked(CLOSE, b"\x03\xe8bye")
    client.sendall(close[:7])
    assert exactly(server, 7) == close[:7]
    made.start_close("restart", code=1012)
    assert exactly(client, len(GOODBYE)) == GOODBYE
    client.sendall(close[7:])
    assert exactly(server, len(close) - 7) == close[7:]
    server.sendall(plain(CLOSE, b"\x03\xe8bye"))
    server.shutdown(socket.SHUT_WR)
    assert to_the_end(server) == b""
    assert to_the_end(client) == b""
    client.close()
    assert made.wait(LIMIT).end is RelayEnd.DRAINED


@pytest.mark.parametrize("first", ["client", "server"])
def test_start_close_adds_no_second_close(rig: Rig, first: str) -> None:
    client, server, made = rig.open()
    if first == "client":
        client.sendall(masked(CLOSE, b"\x03\xe8"))
        assert exactly(server, 8) == masked(CLOSE, b"\x03\xe8")
        made.start_close("restart", code=1012)
        assert to_the_end(client) == GOODBYE
        server.shutdown(socket.SHUT_WR)
        assert to_the_end(server) == b""
    else:
        server.sendall(plain(CLOSE, b"\x03\xe8"))
        assert exactly(client, 4) == plain(CLOSE, b"\x03\xe8")
        made.start_close("restart", code=1012)
        assert unmasked(to_the_end(server)) == GOODBYE
        client.shutdown(socket.SHUT_WR)
        assert to_the_end(client) == b""
    client.close()
    server.close()
    assert made.wait(LIMIT).end is RelayEnd.DRAINED


def test_unsent_bytes_go_before_the_close(rig: Rig) -> None:
    client, server, made = rig.open(small=True)
    frame = plain(BINARY, bytes(2**20))
    writing = in_thread(lambda: server.sendall(frame))
    assert exactly(client, 2) == frame[:2]
    made.start_close("restart", code=1012)
    assert exactly(client, len(frame) - 2 + len(GOODBYE)) == frame[2:] + GOODBYE
    writing.result(LIMIT)
    client.close()
    server.close()
    assert made.wait(LIMIT).end is RelayEnd.DRAINED


@ONCE
def test_start_close_waits_close_timeout_for_a_side_that_never_reads(rig: Rig) -> None:
    _, server, made = rig.open(small=True, close_timeout=SHORT)
    taken_from(server, 2**24)
    made.start_close()
    assert made.wait(LIMIT).end is RelayEnd.DRAINED


@ONCE
def test_start_close_checks_its_arguments_immediately(rig: Rig) -> None:
    _, _, made = rig.open()
    with pytest.raises(LocalProtocolError):
        made.start_close(code=1005, reason="no")
    with pytest.raises(LocalProtocolError):
        made.start_close("long" * 40)
    with pytest.raises(TimeoutError):
        made.wait(0.001)
    assert not made.gone


@EVERYWHERE
def test_abort_ends_both_sides_immediately(rig: Rig) -> None:
    client, server, made = rig.open(shutdown_code=1012)
    assert made.shutdown_code == 1012
    made.abort()
    for sock in (client, server):
        with contextlib.suppress(ConnectionResetError):
            assert to_the_end(sock) == b""
    assert made.wait(LIMIT).end is RelayEnd.BROKEN_OFF
    made.start_close()
    made.abort()


# --- limits ------------------------------------------------------------------------------------------------------

AWAY = {RelayEnd.IDLE: "idle", RelayEnd.TOO_LONG: "time limit reached"}


@pytest.mark.parametrize("option, end", [("idle_timeout", RelayEnd.IDLE), ("max_duration", RelayEnd.TOO_LONG)])
def test_max_duration_and_idle_timeout_end_the_relay(rig: Rig, option: str, end: RelayEnd) -> None:
    options: dict[str, Any] = {option: SHORT}
    client, server, made = rig.open(**options)
    close = plain(CLOSE, encode_close(1001, AWAY[end]))
    assert exactly(client, len(close)) == close
    assert unmasked(exactly(server, len(close) + 4)) == close
    answer(client, server)
    assert made.wait(LIMIT).end is end


@ONCE
def test_a_relay_is_idle_if_nothing_moves_in_either_direction(rig: Rig) -> None:
    client, server, made = rig.open(idle_timeout=2 * SHORT)
    began = time.monotonic()
    while time.monotonic() < began + 3 * SHORT:
        client.sendall(b"\x89\x80" + KEY)
        exactly(server, 6)
    assert not made.gone
    assert exactly(client, 2) == b"\x88\x06"  # and then it is


@ONCE
def test_a_peer_that_never_reads_is_idle(rig: Rig) -> None:
    _, server, made = rig.open(small=True, idle_timeout=SHORT, close_timeout=SHORT)
    with contextlib.suppress(ConnectionError):
        taken_from(server, 2**24)
    assert made.wait(LIMIT).end is RelayEnd.IDLE


def test_max_bytes_ends_the_relay(rig: Rig) -> None:
    client, server, made = rig.open(max_bytes=20)
    client.sendall(masked(TEXT, b"hello"))
    assert exactly(server, 11) == masked(TEXT, b"hello")
    server.sendall(plain(BINARY, b"1234567"))
    assert exactly(client, 9) == plain(BINARY, b"1234567")
    client.sendall(masked(TEXT, b"hello"))
    close = plain(CLOSE, encode_close(1008, "byte limit reached"))
    assert exactly(client, len(close)) == close
    assert unmasked(exactly(server, len(close) + 4)) == close
    answer(client, server)
    result = made.wait(LIMIT)
    assert (result.end, result.to_server, result.to_client) == (RelayEnd.TOO_MUCH, 11, 9)


def test_max_bytes_may_be_reached_in_the_middle_of_a_frame(rig: Rig) -> None:
    client, server, made = rig.open(max_bytes=20)
    client.sendall(masked(TEXT, b"hello, world")[:10])
    assert exactly(server, 10) == masked(TEXT, b"hello, world")[:10]
    client.sendall(bytes(11))
    assert to_the_end(server) == b""
    assert exactly(client, 2) == plain(CLOSE, encode_close(1008, "byte limit reached"))[:2]
    client.close()
    server.close()
    assert made.wait(LIMIT).end is RelayEnd.TOO_MUCH


# --- other streams -----------------------------------------------------------------------------------------------


def wrapped(rig: Rig, contexts: Contexts, *, small: bool = False) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Both ends of a TLS connection: the hand-driven peer, and ours, which is the TLS server."""
    ours, theirs = contexts[1], contexts[0]
    near, far = rig.pair(small=small)
    accepting = in_thread(lambda: ours.wrap_socket(far, server_side=True))
    peer = theirs.wrap_socket(near, server_hostname="localhost")
    rig._sockets += [peer, mine := accepting.result(LIMIT)]
    return peer, mine


def chat(client: socket.socket, server: socket.socket, size: int = 300_000) -> None:
    for one, other in ((client, server), (server, client)):
        data = plain(BINARY, os.urandom(size))
        writing = in_thread(lambda one=one, data=data: one.sendall(data))  # type: ignore[misc]
        assert exactly(other, len(data)) == data
        writing.result(LIMIT)


@pytest.mark.parametrize("side", ["client", "server", "both"])
def test_tls_sockets_are_relayed(rig: Rig, tls_contexts: Contexts, side: str) -> None:
    client, a = wrapped(rig, tls_contexts) if side != "server" else rig.pair()
    server, b = wrapped(rig, tls_contexts) if side != "client" else rig.pair()
    early = masked(TEXT, b"early")
    made = rig.between(detach(a, early), b)
    assert exactly(server, len(early)) == early
    chat(client, server)
    client.close()
    assert to_the_end(server) == b""
    server.close()
    assert made.wait(LIMIT).end in (RelayEnd.ENDED, RelayEnd.RESET)  # closed without a close_notify


def test_tls_ends_with_a_close_frame_and_a_close_notify(rig: Rig, tls_contexts: Contexts) -> None:
    (client, a), (server, b) = wrapped(rig, tls_contexts), wrapped(rig, tls_contexts)
    made = rig.between(a, b)
    client.sendall(masked(TEXT, b"hello"))
    assert exactly(server, 11) == masked(TEXT, b"hello")
    made.start_close("restart", code=1012)
    assert exactly(client, len(GOODBYE)) == GOODBYE
    assert unmasked(exactly(server, len(GOODBYE) + 4)) == GOODBYE
    answer(client, server)
    assert made.wait(LIMIT).end is RelayEnd.DRAINED


async def streams_of(sock: socket.socket, context: ssl.SSLContext | None) -> Any:
    sock.setblocking(False)
    if context is None:
        return await asyncio.open_connection(sock=sock)
    return await asyncio.open_connection(sock=sock, ssl=context, server_hostname="localhost")


@pytest.mark.parametrize("kind", ["plain", "tls", "transport"])
def test_streams_and_transports_are_relayed(rig: Rig, tls_contexts: Contexts, kind: str) -> None:
    (client, a), (server, b) = rig.pair(), rig.pair()
    theirs = in_thread(lambda: tls_contexts[1].wrap_socket(server, server_side=True)) if kind == "tls" else None

    async def make() -> Relay:
        near = await streams_of(a, None)
        far = await streams_of(b, tls_contexts[0] if kind == "tls" else None)
        if kind == "transport":
            return relay(near[1].transport, far[1].transport)
        if kind == "plain":
            # What the reader holds already is passed on as well.
            await far[0].readexactly(1)
        return relay(near, far)

    if kind == "plain":
        server.sendall(b"!early")
    made = rig.loop.call(make())
    rig.relays.append(made)
    if theirs is not None:
        rig._sockets.append(server := theirs.result(LIMIT))
    if kind == "plain":
        assert exactly(client, 5) == b"early"
    chat(client, server)
    made.start_close("restart", code=1012)
    if kind != "plain":  # where the early bytes were no frames
        assert exactly(client, len(GOODBYE)) == GOODBYE
        assert unmasked(exactly(server, len(GOODBYE) + 4)) == GOODBYE
        client.sendall(masked(CLOSE, b"\x03\xe8"))
        server.sendall(plain(CLOSE, b"\x03\xe8"))
    client.shutdown(socket.SHUT_WR)
    to_the_end(server)
    server.close()
    to_the_end(client)
    client.close()
    assert made.wait(LIMIT).end is RelayEnd.DRAINED


def test_a_slow_reader_behind_tls_pauses_the_other_side_within_bounds(rig: Rig, tls_contexts: Contexts) -> None:
    (client, a), (server, b) = wrapped(rig, tls_contexts, small=True), rig.pair(small=True)
    rig.between(a, b)
    sent = taken_from(server, 2**21)
    assert exactly(client, len(sent)) == sent


# --- waiting, counting, refusing ---------------------------------------------------------------------------------


@EVERYWHERE
def test_a_relay_can_be_awaited_on_any_loop(rig: Rig) -> None:
    client, server, made = rig.open()

    async def cancelled_first() -> RelayResult:
        async def wait() -> RelayResult:
            return await made

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wait(), 0.01)
        client.close()
        server.close()
        return await made

    assert asyncio.run(cancelled_first()).end is RelayEnd.ENDED
    assert asyncio.run(cancelled_first()) is made.wait(0)


@EVERYWHERE
def test_many_relays_need_no_threads_and_leave_no_descriptors(rig: Rig) -> None:
    rig.open()[2].abort()
    until(lambda: rig.relays[0].gone)
    threads, files = threading.active_count(), descriptors()
    opened = [rig.open() for _ in range(200)]
    assert len(live_relays()) >= 200
    for number, (client, server, _) in enumerate(opened):
        client.sendall(b"%d" % number)
        assert server.recv(10) == b"%d" % number
    assert threading.active_count() <= threads + 0
    for number, (client, server, made) in enumerate(opened):
        if number % 3 == 0:
            made.abort()
        elif number % 3 == 1:
            reset(client)
        client.close()
        server.close()
    for _, _, made in opened:
        made.wait(LIMIT)
    assert descriptors() <= files


def test_a_stream_that_is_not_open_is_refused(tls_contexts: Contexts) -> None:
    one, other = tcp_pair()
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    early = tls_contexts[0].wrap_socket(socket.socket(), server_hostname="localhost")
    with one, other, datagrams, early, socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(TypeError, match=r"expected a socket, .* got str"):
            relay("a socket", one)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="the same twice"):
            relay(one, one)
        for wrong in (listener, datagrams):
            with pytest.raises(ValueError, match="expected a connected stream socket"):
                relay(one, wrong)
        with pytest.raises(ValueError, match="expected close_timeout above 0, got 0"):
            relay(one, other, close_timeout=0)
        with pytest.raises(ValueError, match="after its handshake"):
            relay(one, early)
        other.close()
        with pytest.raises(ConnectionClosed, match="got a closed socket"):
            relay(one, other)
        assert one.fileno() != -1  # it still belongs to the caller


def test_transports_need_their_loop(loops: Callable[[str], LoopThread]) -> None:
    one, other = tcp_pair()
    with one:
        reader, writer = loops("asyncio").call(streams_of(other, None))
        with pytest.raises(ValueError, match="expected sockets where no event loop is running"):
            relay(one, (reader, writer))

        async def closing() -> None:
            writer.close()
            with pytest.raises(ConnectionClosed, match="expected an open transport"):
                relay(one, (reader, writer))
            await writer.wait_closed()

        loops("asyncio").call(closing())


def test_a_loop_that_cannot_wait_for_sockets_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "ProactorEventLoop", type(rig.loop.loop), raising=False)
    with pytest.raises(NotImplementedError, match="expected an event loop with add_reader"):
        rig.open()


@ONCE
def test_a_forked_child_has_no_relays(rig: Rig) -> None:
    rig.open()
    child = os.fork()
    if child == 0:
        os._exit(len(live_relays()))
    assert os.waitpid(child, 0)[1] == 0


def test_a_writer_without_its_reader_is_refused_as_the_reader_may_hold_bytes() -> None:
    ours, peer = tcp_pair()
    other, far = tcp_pair()

    async def scenario() -> None:
        _, writer = await asyncio.open_connection(sock=ours)
        with pytest.raises(TypeError, match="got a StreamWriter alone: pass its reader"):
            relay(writer, other)  # type: ignore[arg-type]  # that is what is tested
        writer.close()
        await writer.wait_closed()

    with peer, other, far:
        asyncio.run(scenario())
