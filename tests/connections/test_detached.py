"""``detached=True``: the raw socket after the opening handshake, which belongs to the caller only."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import LIMIT
from tests.support.waiting import in_thread
from tests.support.ways import CLIENT, SERVER, HeadReader, Opener
from tests.support.wire_peer import HANDSHAKE_KEY, WirePeer, header, request_head, response_head, tcp_pair
from watershed_mw import ConnectionClosed, HandshakeError, Watershed
from watershed_mw.connection.adopt import DetachedStreams

EARLY = b"early bytes"


def recv(sock: socket.socket, size: int) -> bytes:
    return sock.recv(size)


def recv_into(sock: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: sock.recv_into(buffer)])


def recv_into_part(sock: socket.socket, size: int) -> bytes:
    buffer = bytearray(size + 5)
    count = sock.recv_into(memoryview(buffer)[5:], size)
    assert buffer[:5] == bytes(5)
    return bytes(buffer[5 : 5 + count])


def recvfrom(sock: socket.socket, size: int) -> bytes:
    return bytes(sock.recvfrom(size)[0])


def recvfrom_into(sock: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: sock.recvfrom_into(buffer)[0]])


def recvmsg(sock: socket.socket, size: int) -> bytes:
    data, ancillary, _flags, _address = sock.recvmsg(size)
    assert ancillary == []
    return data


def recvmsg_into(sock: socket.socket, size: int) -> bytes:
    first, second = bytearray(size // 2), bytearray(size - size // 2)
    count = sock.recvmsg_into([first, second])[0]
    return bytes((first + second)[:count])


def peeked(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size, socket.MSG_PEEK)
    assert sock.recv(size, socket.MSG_PEEK) == data
    return sock.recv(len(data))


def peeked_into(sock: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    count = sock.recv_into(buffer, 0, socket.MSG_PEEK)
    assert sock.recv(count) == buffer[:count]
    return bytes(buffer[:count])


PLAIN_READS = [
    recv,
    recv_into,
    recv_into_part,
    recvfrom,
    recvfrom_into,
    recvmsg,
    recvmsg_into,
    peeked,
    peeked_into,
]
# ssl.SSLSocket has no more: it refuses recvmsg and flags.
TLS_READS = [recv, recv_into, recv_into_part]
Read = Callable[[socket.socket, int], bytes]


def head_of(sock: Any) -> bytes:
    """The early bytes that have not been read yet."""
    head: bytes = sock.head
    return head


def read_exactly(sock: socket.socket, read: Read, size: int, step: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = read(sock, min(step, size - len(data)))
        assert piece, "the stream ended"
        data += piece
    return data


@pytest.mark.parametrize("step", [3, 100])
@pytest.mark.parametrize("read", PLAIN_READS)
def test_early_bytes_come_first_with_every_read_method(read: Read, step: int) -> None:
    ours, theirs = tcp_pair()
    with theirs, Watershed().accept(request_head() + EARLY, ours, detached=True) as taken:
        WirePeer(theirs, CLIENT).read_head()
        assert head_of(taken) == EARLY
        theirs.sendall(b"later")
        assert read_exactly(taken, read, len(EARLY) + 5, step) == EARLY + b"later"
        assert head_of(taken) == b""
        taken.sendall(b"ours")
        assert theirs.recv(100) == b"ours"


def test_early_bytes_come_first_from_a_file() -> None:
    ours, theirs = tcp_pair()
    with theirs, Watershed().accept(request_head() + EARLY, ours, detached=True) as taken:
        WirePeer(theirs, CLIENT).read_head()
        theirs.sendall(b"later\nrest")
        theirs.shutdown(socket.SHUT_WR)
        with taken.makefile("rb") as file:
            assert file.readline() == EARLY + b"later\n"
            assert file.read() == b"rest"


def test_early_bytes_come_first_on_a_client_too() -> None:
    ours, theirs = tcp_pair()
    answer = response_head(HANDSHAKE_KEY) + EARLY[:4]
    with theirs, Watershed().connect(answer, ours, EARLY[4:], HANDSHAKE_KEY, detached=True) as taken:
        theirs.sendall(b"later")
        assert read_exactly(taken, recv, len(EARLY) + 5, 100) == EARLY + b"later"
        assert WirePeer(theirs, SERVER).silent()


@pytest.mark.parametrize("timeout", [None, 0.0, 7.5])
def test_the_socket_keeps_its_timeout_and_the_original_is_detached(timeout: float | None) -> None:
    ours, theirs = tcp_pair()
    ours.settimeout(timeout)
    with theirs, Watershed().accept(request_head(), ours, detached=True) as taken:
        assert taken.gettimeout() == timeout
        assert ours.fileno() == -1
        ours.close()  # as its first owner will
        peer = WirePeer(theirs, CLIENT)
        assert header(peer.read_head(), "sec-websocket-accept")
        theirs.sendall(b"still open")
        taken.settimeout(LIMIT)
        assert taken.recv(100) == b"still open"
        assert peer.silent()


def test_nothing_is_answered_on_a_detached_socket() -> None:
    """No PONG, no Close, no FIN: frames are up to the new owner."""
    ours, theirs = tcp_pair()
    peer = WirePeer(theirs, CLIENT)
    shed = Watershed(ping_interval=0.01, ping_timeout=0.01)
    with theirs, shed.accept(request_head(), ours, detached=True) as taken:
        peer.read_head()
        sent = peer.frame(0x9, b"ping") + peer.frame(0x8) + b"\xff" * 10
        peer.write(sent)
        peer.half_close()
        assert read_exactly(taken, recv, len(sent), 100) == sent
        assert taken.recv(100) == b""
        assert peer.silent()
        taken.sendall(b"not yet over")
        assert theirs.recv(100) == b"not yet over"


def test_a_refusal_leaves_the_socket_open() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        with pytest.raises(HandshakeError):
            Watershed().accept(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ours, detached=True)
        assert WirePeer(theirs, CLIENT).read_head().startswith(b"HTTP/1.1 426 ")
        assert ours.fileno() != -1


# --- asyncio ------------------------------------------------------------------------------------------------

flavours = pytest.mark.parametrize("flavour", ["asyncio", "uvloop"])
carriers = pytest.mark.parametrize("carrier", ["streams", "transport"])


async def taken_on_loop(sock: socket.socket, carrier: str) -> socket.socket:
    """The result of an accept with ``detached=True`` on the running loop."""
    loop = asyncio.get_running_loop()
    if carrier == "streams":
        reader, writer = await asyncio.open_connection(sock=sock)
        taken = Watershed().accept(await reader.readuntil(b"\r\n\r\n"), (reader, writer), detached=True)
    else:
        sock.setblocking(False)
        transport, protocol = await loop.create_connection(HeadReader, sock=sock)
        taken = Watershed().accept(await protocol.head(), transport, detached=True)
    assert isinstance(taken, socket.socket)
    await asyncio.sleep(0)  # the loop closes its own descriptor meanwhile
    await asyncio.sleep(0)
    return taken


@flavours
@carriers
def test_a_plain_transport_gives_a_nonblocking_socket(opener: Opener, flavour: str, carrier: str) -> None:
    ours, theirs = tcp_pair()
    peer = WirePeer(theirs, CLIENT)

    async def serve() -> bytes:
        loop = asyncio.get_running_loop()
        taken = await taken_on_loop(ours, carrier)
        with taken:
            assert taken.gettimeout() == 0
            data = head_of(taken)
            assert not data or taken.recv(len(data)) == data
            while not data.endswith(b"."):
                data += await asyncio.wait_for(loop.sock_recv(taken, 100), LIMIT)
            await loop.sock_sendall(taken, b"answer")
        return data

    with theirs:
        serving = asyncio.run_coroutine_threadsafe(serve(), opener.loop(flavour).loop)
        peer.write(request_head(), EARLY)
        assert header(peer.read_head(), "sec-websocket-accept")
        peer.write(b" and more.")
        assert serving.result(LIMIT) == EARLY + b" and more."
        assert theirs.recv(100) == b"answer"
        peer.expect_end()


@flavours
@carriers
def test_a_socket_from_a_plain_transport_can_be_made_blocking(opener: Opener, flavour: str, carrier: str) -> None:
    ours, theirs = tcp_pair()
    peer = WirePeer(theirs, CLIENT)
    with theirs:
        taking = asyncio.run_coroutine_threadsafe(taken_on_loop(ours, carrier), opener.loop(flavour).loop)
        peer.write(request_head(), EARLY)
        assert header(peer.read_head(), "sec-websocket-accept")
        with taking.result(LIMIT) as taken:
            taken.settimeout(LIMIT)
            theirs.sendall(b"later")
            assert read_exactly(taken, recv, len(EARLY) + 5, 100) == EARLY + b"later"
            taken.sendall(b"x" * 100_000)
            received = b""
            while len(received) < 100_000:
                received += theirs.recv(2**16)
            assert peer.silent()


@flavours
@carriers
def test_an_asyncio_client_gets_a_socket_too(opener: Opener, flavour: str, carrier: str) -> None:
    ours, theirs = tcp_pair()

    async def connect() -> socket.socket:
        loop = asyncio.get_running_loop()
        ours.setblocking(False)
        if carrier == "streams":
            reader, writer = await asyncio.open_connection(sock=ours)
            head = await reader.readuntil(b"\r\n\r\n")
            taken = Watershed().connect(head, (reader, writer), key=HANDSHAKE_KEY, detached=True)
        else:
            transport, protocol = await loop.create_connection(HeadReader, sock=ours)
            taken = Watershed().connect(await protocol.head(), transport, key=HANDSHAKE_KEY, detached=True)
        assert isinstance(taken, socket.socket)
        return taken

    with theirs:
        theirs.sendall(response_head(HANDSHAKE_KEY) + EARLY)
        with opener.loop(flavour).call(connect()) as taken:
            taken.settimeout(LIMIT)
            theirs.sendall(b"later")
            assert read_exactly(taken, recv, len(EARLY) + 5, 100) == EARLY + b"later"
            assert WirePeer(theirs, SERVER).silent()


@flavours
@carriers
def test_an_asyncio_tls_transport_becomes_a_reader_and_a_writer(
    opener: Opener, tls_contexts: tuple[ssl.SSLContext, ssl.SSLContext], flavour: str, carrier: str
) -> None:
    client, server = tls_contexts
    ours, theirs = tcp_pair()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        ours.setblocking(False)
        reader = asyncio.StreamReader()
        protocol: Any = asyncio.StreamReaderProtocol(reader) if carrier == "streams" else HeadReader()
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, ours, ssl=server)
        stream: Any = transport
        if carrier == "streams":
            stream = (reader, asyncio.StreamWriter(transport, protocol, reader, loop))
            head = await reader.readuntil(b"\r\n\r\n")
        else:
            head = await protocol.head()
        taken = Watershed().accept(head, stream, detached=True)
        assert isinstance(taken, DetachedStreams)
        incoming, outgoing = taken
        assert EARLY.startswith(taken.head)
        assert await incoming.readexactly(len(EARLY)) == EARLY
        outgoing.write(b"raw")
        assert await incoming.readexactly(7) == b"raw too"
        outgoing.close()
        await outgoing.wait_closed()

    serving = asyncio.run_coroutine_threadsafe(serve(), opener.loop(flavour).loop)
    with client.wrap_socket(theirs, server_hostname="127.0.0.1") as tls:
        tls.settimeout(LIMIT)
        tls.sendall(request_head() + EARLY)
        received = b""
        while not received.endswith(b"\r\n\r\nraw"):
            chunk = tls.recv(1000)
            assert chunk, received
            received += chunk
        assert received.startswith(b"HTTP/1.1 101 ")
        tls.sendall(b"raw too")
        assert tls.recv(100) == b""
    serving.result(LIMIT)


def test_a_closing_transport_cannot_be_detached(opener: Opener) -> None:
    ours, theirs = tcp_pair()

    async def serve() -> None:
        ours.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        transport.close()
        with pytest.raises(ConnectionClosed):
            Watershed().accept(request_head(), transport, detached=True)
        with pytest.raises(ConnectionClosed):
            Watershed().accept(request_head(), transport)

    with theirs:
        opener.loop().call(serve())
        assert theirs.recv(100) == b""


# --- TLS sockets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [3, 100])
@pytest.mark.parametrize("read", TLS_READS)
def test_a_tls_socket_is_returned_itself_with_early_bytes_first(
    tls_contexts: tuple[ssl.SSLContext, ssl.SSLContext], read: Read, step: int
) -> None:
    ours, theirs = tcp_pair()
    client, server = tls_contexts
    wrapping = in_thread(lambda: client.wrap_socket(theirs, server_hostname="127.0.0.1"))
    tls = server.wrap_socket(ours, server_side=True)
    tls.settimeout(7.5)
    with wrapping.result(LIMIT) as other, Watershed().accept(request_head() + EARLY, tls, detached=True) as taken:
        peer = WirePeer(other, CLIENT)
        assert header(peer.read_head(), "sec-websocket-accept")
        assert taken is tls
        assert taken.gettimeout() == 7.5
        other.sendall(b"later")
        assert read_exactly(taken, read, len(EARLY) + 5, step) == EARLY + b"later"
        taken.sendall(b"ours")
        assert other.recv(100) == b"ours"
        assert peer.silent()


def test_early_bytes_come_first_from_a_file_over_tls(tls_contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    ours, theirs = tcp_pair()
    client, server = tls_contexts
    wrapping = in_thread(lambda: client.wrap_socket(theirs, server_hostname="127.0.0.1"))
    tls = server.wrap_socket(ours, server_side=True)
    with wrapping.result(LIMIT) as other, Watershed().accept(request_head() + EARLY, tls, detached=True) as taken:
        WirePeer(other, CLIENT).read_head()
        other.sendall(b"later\n")
        with taken.makefile("rb") as file:
            assert file.readline() == EARLY + b"later\n"
