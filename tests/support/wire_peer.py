"""A hand-driven peer: a blocking socket that writes exact bytes and reads exact frames.

It does what a test says, valid or not, and keeps no protocol state. Every call has a time limit, and none sleeps.
"""

from __future__ import annotations

import base64
import hashlib
import select
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from tests.support import LIMIT
from watershed_mw.core.frames.codec import encode_frame, mask
from watershed_mw.core.states import Role

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
KEY = b"\x37\xfa\x21\x3d"
HANDSHAKE_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
# Seconds without progress after which a send counts as blocked. Too short would only make a flood smaller.
STALL = 0.3
SMALL_BUFFER = 32 * 2**10


class Frame(NamedTuple):
    """One frame as it was on the wire, unmasked."""

    opcode: int
    payload: bytes
    fin: bool = True


def tcp_pair(*, small: bool = False) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on loopback; with ``small``, tiny kernel buffers make writers block soon."""
    with socket.socket() as listener:
        if small:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        one = socket.socket()
        if small:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        one.settimeout(LIMIT)
        one.connect(listener.getsockname())
        other, _ = listener.accept()
    for end in (one, other):
        end.settimeout(LIMIT)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


def request_head(*fields: tuple[str, str], key: str = HANDSHAKE_KEY) -> bytes:
    """The head of a client's opening handshake, as bytes."""
    lines = [
        "GET /chat HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in fields),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def response_head(key: str, *fields: tuple[str, str]) -> bytes:
    """The head of a server's 101, as bytes."""
    accept = base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept}",
        *(f"{name}: {value}" for name, value in fields),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def header(head: bytes, name: str) -> str | None:
    """The value of a header field in a raw head, or None."""
    for line in head.decode("latin-1").split("\r\n")[1:]:
        known, _, value = line.partition(":")
        if known.lower() == name.lower():
            return value.strip()
    return None


def close_payload(code: int | None, reason: str = "") -> bytes:
    """Code and reason of a Close frame's payload."""
    return b"" if code is None else code.to_bytes(2, "big") + reason.encode()


class WirePeer:
    """One end of a connection, moved by hand.

    Args:
        sock: connected socket or TLS socket, which this object closes.
        role: the role that this end plays; a client masks.
    """

    def __init__(self, sock: socket.socket, role: Role) -> None:
        sock.settimeout(LIMIT)
        self.sock = sock
        self.role = role
        self._buffer = bytearray()

    # --- writing ---------------------------------------------------------------------------------------

    def frame(self, opcode: int, payload: bytes | str = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
        """The bytes of one frame, masked as this role requires."""
        data = payload.encode() if isinstance(payload, str) else payload
        key = KEY if self.role is Role.CLIENT else None
        return encode_frame(opcode, data, key, (0x80 if fin else 0) | rsv << 4)

    def write(self, *data: bytes) -> None:
        """Write bytes in one call."""
        self.sock.sendall(b"".join(data))

    def send(self, opcode: int, payload: bytes | str = b"", *, fin: bool = True, rsv: int = 0) -> None:
        """Write one frame."""
        self.write(self.frame(opcode, payload, fin=fin, rsv=rsv))

    def send_all(self, frames: Iterable[Frame]) -> None:
        """Write frames in one call."""
        self.write(*(self.frame(opcode, payload, fin=fin) for opcode, payload, fin in frames))

    def send_close(self, code: int | None = 1000, reason: str = "") -> None:
        """Write a Close frame."""
        self.send(CLOSE, close_payload(code, reason))

    def flood(self, data: bytes, most: int) -> int:
        """Write ``data`` again and again until the other end takes no more; how many times it was begun.

        Fails when ``most`` bytes have gone out without a stop. What is left of the last ``data`` goes out
        with :meth:`finish_flood`.
        """
        begun = taken = 0
        self._rest = memoryview(b"")
        self.sock.settimeout(STALL)
        try:
            while True:
                if not self._rest:
                    self._rest = memoryview(data)
                    begun += 1
                try:
                    sent = self.sock.send(self._rest)
                except TimeoutError:
                    return begun
                taken += sent
                self._rest = self._rest[sent:]
                assert taken <= most, f"{taken} bytes were taken from a peer that should have been made to wait"
        finally:
            self.sock.settimeout(LIMIT)

    def finish_flood(self) -> None:
        """Write what :meth:`flood` has left over."""
        self.sock.sendall(self._rest)

    # --- reading ---------------------------------------------------------------------------------------

    def _more(self) -> None:
        data = self.sock.recv(2**18)
        if not data:
            raise EOFError(f"the stream has ended, with {len(self._buffer)} bytes of an incomplete frame")
        self._buffer += data

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def read_head(self) -> bytes:
        """Read an HTTP head, including its empty line."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        return self._exactly(self._buffer.index(b"\r\n\r\n") + 4)

    def read(self) -> Frame:
        """Read one frame; its mask must be as the other role requires."""
        first, second = self._exactly(2)
        size = second & 0x7F
        if size >= 126:
            size = int.from_bytes(self._exactly(2 if size == 126 else 8), "big")
        masked = second >= 0x80
        assert masked is (self.role is Role.SERVER), "a client masks, a server does not"
        assert not first & 0x70, "no extension was agreed on, so no reserved bit has a meaning"
        key = self._exactly(4) if masked else None
        payload = self._exactly(size)
        return Frame(first & 0x0F, mask(payload, 0, size, key, 0) if key else payload, first >= 0x80)

    def expect(self, opcode: int, payload: bytes | str = b"") -> None:
        """Read a complete frame that must equal this one."""
        data = payload.encode() if isinstance(payload, str) else payload
        frame = self.read()
        assert frame.opcode == opcode
        assert frame.fin
        assert len(frame.payload) == len(data)
        assert frame.payload == data

    def expect_close(self, code: int | None = 1000, reason: str | None = None) -> None:
        """Read a Close frame with this code, and with this reason unless it is None."""
        frame = self.read()
        assert frame.opcode == CLOSE, frame
        got = int.from_bytes(frame.payload[:2], "big") if frame.payload else None
        assert got == code, frame
        if reason is not None:
            assert frame.payload[2:].decode() == reason

    def expect_end(self) -> None:
        """Expect an orderly end of the stream, and nothing before it."""
        assert not self._buffer
        data = self.sock.recv(2**16)
        assert data == b"", data[:100]

    def finish(self) -> None:
        """Expect the end of the TCP stream, in both directions, after the closing handshake; a server closes first."""
        if self.role is Role.CLIENT:
            self.expect_end()
        self.close()

    def answer_close(self, code: int = 1000, reason: str | None = None) -> None:
        """Answer a closing handshake that the other end has begun with ``code``."""
        self.expect_close(code, reason)
        self.send_close(code)
        self.finish()

    def begin_close(self, code: int | None = 1000, reason: str = "") -> None:
        """Begin a closing handshake, which the other end must answer with the same code, and complete it."""
        self.send_close(code, reason)
        self.expect_close(code)
        self.finish()

    def silent(self) -> bool:
        """Whether there is nothing to read right now."""
        return not self._buffer and not select.select([self.sock], [], [], 0)[0]

    # --- going away ------------------------------------------------------------------------------------

    def half_close(self) -> None:
        """Send a FIN; under TLS without a close_notify, as when a program is killed."""
        socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def reset(self) -> None:
        """Send an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self.sock.close()
