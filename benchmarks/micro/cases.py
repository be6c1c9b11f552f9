"""The cases of the micro-benchmarks: single steps on the path of a message, on either build.

Each case uses the methods that the drivers call (`receive_data`, `send_*` and `data_to_send`), so the figures are those
of real calls. Unless masking is the subject, frames are read unmasked, as a client reads them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.load import document
from tests.support.builds import START, Build
from tests.support.wire import BINARY, KEY, TEXT, frame
from watershed_mw import Watershed
from watershed_mw.core.handshake.negotiation import Agreement
from watershed_mw.core.states import Role
from watershed_mw.http.parse import read_request_head
from watershed_mw.http.write import write_response

HEAD = (
    b"GET /echo?token=1 HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nConnection: Upgrade\r\nPragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    b"Upgrade: websocket\r\nOrigin: http://127.0.0.1:8000\r\nSec-WebSocket-Version: 13\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)
BURST = 64
KIB = 1024
MIB = 1024 * KIB

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        group: "codec", "masking", "deflate" or "handshake".
        prepare: returns the function to run repeatedly, for a given build.
        messages: how many messages one run handles.
        size: bytes of each message.
    """

    group: str
    name: str
    prepare: Callable[[Build], Run]
    messages: int = 1
    size: int = 32


def reading(data: bytes, count: int = 1, *, role: Role = Role.CLIENT, deflate: bool = False) -> Callable[[Build], Run]:
    """The peer's bytes, parsed into messages."""

    def prepare(build: Build) -> Run:
        protocol = build.make(role, parameters=agreed().deflate if deflate else None)
        assert len(protocol.receive_data(data, START)) == count
        return lambda: protocol.receive_data(data, START)

    return prepare


def sending(message: str | bytes, *, role: Role = Role.SERVER, deflate: bool = False) -> Callable[[Build], Run]:
    """A message, encoded into the bytes to write."""

    def prepare(build: Build) -> Run:
        protocol = build.make(role, parameters=agreed().deflate if deflate else None)

        def send_text() -> bytes:
            assert isinstance(message, str)
            protocol.send_text(message)
            return protocol.data_to_send()

        def send_binary() -> bytes:
            assert isinstance(message, bytes)
            protocol.send_binary(message)
            return protocol.data_to_send()

        return send_text if isinstance(message, str) else send_binary

    return prepare


SHED = Watershed()


def agreed() -> Agreement:
    """The parameters that a browser and the default options agree on."""
    request, key = SHED.check(read_request_head(HEAD)[0])
    return SHED.agree(request, key)[0]


def opening(build: Build) -> Run:
    """From a request head to the bytes of the 101 and the connection's protocol."""

    def run() -> object:
        request, key = SHED.check(read_request_head(HEAD)[0])
        agreement, fields = SHED.agree(request, key)
        return write_response(101, fields), build.make(parameters=agreement.deflate)

    return run


def deflated(text: bytes) -> bytes:
    """A client's frame with a compressed message that does not refer to earlier ones."""
    deflater = zlib.compressobj(wbits=-15)
    payload = (deflater.compress(text) + deflater.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")
    return frame(TEXT, payload, rsv=4, key=KEY)


JSON = document(4 * KIB)

CASES = (
    Case("codec", "read text 32 B", reading(frame(TEXT, JSON[:32]))),
    Case("codec", "read binary 32 B", reading(frame(BINARY, bytes(32)))),
    Case("codec", "read 64 x 32 B in one piece", reading(frame(BINARY, bytes(32)) * BURST, BURST), BURST),
    Case("codec", "read text 4 KiB", reading(frame(TEXT, JSON)), size=4 * KIB),
    Case("codec", "read binary 4 KiB", reading(frame(BINARY, bytes(4 * KIB))), size=4 * KIB),
    Case("codec", "read text 1 MiB", reading(frame(TEXT, JSON * 256)), size=MIB),
    Case("codec", "send text 32 B", sending(JSON[:32].decode())),
    Case("codec", "send binary 32 B", sending(bytes(32))),
    Case("codec", "send text 4 KiB", sending(JSON.decode()), size=4 * KIB),
    Case("codec", "send binary 4 KiB", sending(bytes(4 * KIB)), size=4 * KIB),
    Case("codec", "send binary 1 MiB", sending(bytes(MIB)), size=MIB),
    *(
        Case("masking", f"unmask {name}", reading(frame(BINARY, bytes(size), key=KEY), role=Role.SERVER), size=size)
        for name, size in (("32 B", 32), ("4 KiB", 4 * KIB), ("1 MiB", MIB))
    ),
    *(
        Case("masking", f"mask {name}", sending(bytes(size), role=Role.CLIENT), size=size)
        for name, size in (("32 B", 32), ("4 KiB", 4 * KIB), ("1 MiB", MIB))
    ),
    Case("deflate", "inflate 4 KiB JSON", reading(deflated(JSON), role=Role.SERVER, deflate=True), size=4 * KIB),
    Case("deflate", "compress 4 KiB JSON", sending(JSON.decode(), deflate=True), size=4 * KIB),
    Case("handshake", "request head to 101", opening),
)
