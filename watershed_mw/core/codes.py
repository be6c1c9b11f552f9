"""Opcodes (RFC 6455 section 5.2) and close codes (section 7.4), and the payloads of TEXT and Close frames."""

from __future__ import annotations

from enum import IntEnum

from ..errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "MAX_CLOSE_REASON",
    "MAX_CONTROL_PAYLOAD",
    "CloseCode",
    "Opcode",
    "decode_close",
    "encode_close",
    "encode_text",
    "is_sendable",
]

MAX_CONTROL_PAYLOAD = 125  # bytes, section 5.5
MAX_CLOSE_REASON = MAX_CONTROL_PAYLOAD - 2  # without the code


class Opcode(IntEnum):
    """Opcodes of frames (section 5.2)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(IntEnum):
    """Close codes (section 7.4.1 and the IANA registry)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    TOO_BIG = 1009
    MISSING_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


# 1004 is reserved; 1005, 1006 and 1015 "MUST NOT be set as a status code in a
# Close control frame by an endpoint" (section 7.4.1).
_SENDABLE = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})


def is_sendable(code: int) -> bool:
    """Whether ``code`` is allowed in a Close frame: a registered one, or 3000 to 4999 (section 7.4.2)."""
    return code in _SENDABLE or 3000 <= code <= 4999


def encode_text(message: str) -> bytes:
    """The payload of a TEXT message (section 5.6).

    Raises:
        LocalProtocolError: the text contains a lone surrogate, which UTF-8 cannot encode.
    """
    try:
        return message.encode()
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"expected text that UTF-8 can encode: {error.reason}") from None


def encode_close(code: object, reason: object) -> bytes:
    """The payload of a Close frame (section 5.5.1); empty for 1005, which means "no code".

    Raises:
        LocalProtocolError: the code is not allowed in a Close frame, or the reason is no string of at most 123 bytes.
    """
    if not isinstance(reason, str):
        raise LocalProtocolError(f"expected the close reason as str, got {type(reason).__name__}")
    if code == CloseCode.NO_STATUS and not reason:
        return b""
    if isinstance(code, bool) or not isinstance(code, int) or not is_sendable(code):
        raise LocalProtocolError(f"expected a close code from 1000 to 1003, 1007 to 1014 or 3000 to 4999, got {code!r}")
    try:
        text = reason.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"expected a close reason that UTF-8 can encode: {error.reason}") from None
    if len(text) > MAX_CLOSE_REASON:
        raise LocalProtocolError(
            f"expected a close reason of at most {MAX_CLOSE_REASON} UTF-8 bytes, got {len(text)}: shorten it"
        )
    return code.to_bytes(2, "big") + text


def shorten(reason: str) -> str:
    """``reason`` truncated to what fits in a Close frame, without splitting a character."""
    return reason.encode("utf-8", "replace")[: MAX_CONTROL_PAYLOAD - 2].decode("utf-8", "ignore")


def decode_close(payload: bytes) -> tuple[int, str]:
    """Code and reason of a Close frame's payload; code 1005 if it is empty (section 7.1.5).

    Raises:
        RemoteProtocolError: a single byte, a code that is not allowed in a Close frame, or a reason that is not UTF-8.
    """
    if not payload:
        return CloseCode.NO_STATUS.value, ""
    if len(payload) == 1:
        raise RemoteProtocolError("expected a Close payload of 0 or at least 2 bytes, got 1")
    code = int.from_bytes(payload[:2], "big")
    if not is_sendable(code):
        raise RemoteProtocolError(f"close code {code} is not allowed in a Close frame")
    try:
        return code, payload[2:].decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError(
            "invalid UTF-8 in the close reason",
            close_code=CloseCode.INVALID_DATA,
        ) from None
