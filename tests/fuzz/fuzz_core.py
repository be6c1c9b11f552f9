"""A coverage-guided fuzz target for the opening handshake and the protocol (RFC 6455 sections 4 to 7, RFC 7692).

It is run by hand, see README.md beside it. The exceptions that the package documents are listed here, and any other
that escapes is a finding; so is input that means something else when it comes in other chunks.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

try:
    atheris: Any = importlib.import_module("atheris")
except ModuleNotFoundError:
    sys.exit("atheris is not installed: python -m pip install atheris")

with atheris.instrument_imports(include=["watershed_mw"]):
    from watershed_mw.core.events import Event, Failed
    from watershed_mw.core.extensions import DeflateOptions, DeflateParameters
    from watershed_mw.core.handshake import (
        Request,
        Response,
        check_request,
        check_response,
        negotiate,
        offered_subprotocols,
        select_subprotocol,
    )
    from watershed_mw.core.headers import Headers
    from watershed_mw.core.limits import Limits
    from watershed_mw.core.protocol import Protocol
    from watershed_mw.core.states import Role, State
    from watershed_mw.errors import ConnectionClosed, HandshakeError, LocalProtocolError

Input: TypeAlias = Any  # atheris.FuzzedDataProvider; atheris has no types

# All that may escape, and from where. What the peer does wrong is an event of the protocol, never an exception.
HANDSHAKE_RAISES = (HandshakeError,)
PROTOCOL_RAISES = (ConnectionClosed, LocalProtocolError)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
NAMES = [
    "Host",
    "Upgrade",
    "Connection",
    "Origin",
    "Content-Length",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Accept",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
]
GOOD = {
    "Host": "a.example",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    "Sec-WebSocket-Version": "13",
}
LIMITS = Limits(max_message_size=5000, max_fragments=50)


def headers(source: Input) -> Headers:
    """The headers of a good handshake, some of them replaced, and others added."""
    fields: list[tuple[str | bytes, str | bytes]] = [
        (name, value) for name, value in GOOD.items() if source.ConsumeProbability() < 0.9
    ]
    others = range(source.ConsumeIntInRange(0, 3))
    fields += [(NAMES[source.ConsumeIntInRange(0, len(NAMES) - 1)], source.ConsumeBytes(60)) for _ in others]
    return Headers(fields)


def fuzz_handshake(source: Input) -> None:
    """A request as a server checks it, then an answer as a client does."""
    options = DeflateOptions(window_bits=source.ConsumeIntInRange(9, 15), context_takeover=source.ConsumeBool())
    request = Request(headers(source), http_version=source.ConsumeUnicodeNoSurrogates(4) or "1.1")
    with contextlib.suppress(*HANDSHAKE_RAISES):
        key = check_request(request, ["*.b.example", "localhost:*", "null"])
        subprotocol = select_subprotocol(offered_subprotocols(request.headers), ["chat"])
        negotiate(request, key, subprotocol=subprotocol, deflate=options)
    with contextlib.suppress(*HANDSHAKE_RAISES):
        check_response(Response(101, headers(source)), KEY, offered=request.headers, deflate=options)


def fuzz_protocol(source: Input) -> None:
    """Bytes of a peer in any chunks, with what shell and application may do in between."""
    role = Role.SERVER if source.ConsumeBool() else Role.CLIENT
    parameters = DeflateParameters(remote_max_window_bits=9) if source.ConsumeBool() else None
    subject = Protocol(role, 0.0, LIMITS, parameters)
    now = 0.0
    while source.remaining_bytes():
        now += source.ConsumeIntInRange(0, 5)
        with contextlib.suppress(*PROTOCOL_RAISES):
            act(subject, source, now)
        assert len(subject.data_to_send()) < 100_000
        assert subject.ended is (subject.state in (State.ENDING, State.CLOSED))


def act(subject: Protocol, source: Input, now: float) -> None:
    """Do one thing; bytes of the peer are what matters most."""
    match source.ConsumeIntInRange(0, 25):
        case 0:
            subject.send_text(source.ConsumeUnicode(20))
        case 1:
            subject.send_binary(source.ConsumeBytes(100))
        case 2:
            subject.ping(source.ConsumeBytes(130), now)
        case 3:
            subject.close(source.ConsumeIntInRange(995, 5005), source.ConsumeUnicode(130), now)
        case 4:
            subject.messages_handed_over(now)
        case 5:
            check(subject.handle_timeout(now, source.ConsumeIntInRange(0, 3)))
        case 6:
            subject.write_paused = True
        case 7:
            subject.writing_resumed()
        case 8:
            subject.receive_eof()
        case 9:
            subject.abort()
        case _:
            check(subject.receive_data(source.ConsumeBytes(source.ConsumeIntInRange(0, 200)), now))


def check(events: list[Event]) -> None:
    """A failure is always the last event, and has a text."""
    for number, event in enumerate(events):
        if isinstance(event, Failed):
            assert number == len(events) - 1
            assert str(event.error)


def fuzz_chunks(source: Input) -> None:
    """The same bytes whole and in two parts: the same meaning."""
    role = Role.SERVER if source.ConsumeBool() else Role.CLIENT
    parameters = DeflateParameters() if source.ConsumeBool() else None
    middle = source.ConsumeIntInRange(0, 200)
    data = source.ConsumeBytes(source.remaining_bytes())
    seen = []
    for chunks in ([data], [data[:middle], data[middle:]]):
        subject = Protocol(role, 0.0, LIMITS, parameters)
        events = [event for chunk in chunks for event in subject.receive_data(chunk, 0.0)]
        texts = [str(event.error) if isinstance(event, Failed) else event for event in events]
        seen.append((texts, subject.state, subject.messages_received, subject.next_deadline()))
    assert seen[0] == seen[1]


TARGETS = [fuzz_handshake, fuzz_protocol, fuzz_chunks]


def one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    source = atheris.FuzzedDataProvider(data)
    TARGETS[source.ConsumeIntInRange(0, len(TARGETS) - 1)](source)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
