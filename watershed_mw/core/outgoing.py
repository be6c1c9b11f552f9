"""Frames on their way to the peer: encoded, masked where this end is the client, and queued until they are written.

This file is compiled as well as interpreted. What may be sent, and when, is decided in
:mod:`watershed_mw.core.protocol`, which builds on it.
"""

from __future__ import annotations

import os
from struct import Struct

from .base import BaseProtocol
from .codes import encode_close, shorten
from .frames.codec import encode_frame, encode_header
from .states import State

__all__ = ["Outgoing"]

_FIN = 0x80
_CLOSE = 0x8
_PONG = 0xA
# The kernel gives random bytes by the system call: one call serves 64 masking keys, which take 3 KiB in the meantime.
_KEYS = Struct("4s" * 64)
# Bytes from which on a payload is not copied into its frame: what is put together at last is copied then, once (the
# protocol's part of a 4 KiB echo in bursts took 1.31 us, and takes 1.14).
_LARGE = 2 * 2**10

_OPEN = State.OPEN
_ENDING = State.ENDING
_CLOSED = State.CLOSED


class Outgoing(BaseProtocol):
    """The part of a connection's core that holds what waits to be sent.

    Args:
        client: whether frames are masked (section 5.3).
    """

    def __init__(self, client: bool) -> None:
        super().__init__()
        self._client = client
        self._lone = b""
        self._outgoing: list[bytes] | None = None  # only where it is more than one piece
        self._keys: list[bytes] = []
        self._pending_pong: bytes | None = None

    # --- the protocol's own answers ------------------------------------------------------------------

    def _answer_ping(self, payload: bytes) -> None:
        # After our Close nothing but the peer's is awaited (section 5.5.1: no more frames after Close).
        if self.state is not _OPEN:
            return
        if self.write_paused:
            self._pending_pong = payload
        else:
            self._write(_PONG, payload)

    def writing_resumed(self) -> None:
        """Tell that the peer reads again: the PONG that waited is queued."""
        self.write_paused = False
        payload = self._pending_pong
        self._pending_pong = None
        if payload is not None and self.sending:
            self._write(_PONG, payload)

    def _echo_close(self) -> None:
        assert self._close_received is not None
        code, reason = self._close_received
        # "When sending a Close frame in response, the endpoint typically echos the status code" (section 5.5.1).
        self._send_close(encode_close(code, reason), code, reason)

    def _send_failure(self) -> None:
        assert self._failure is not None
        code = self._failure.close_code
        reason = shorten(str(self._failure))
        self._send_close(encode_close(code, reason), code, reason)

    def _send_close(self, payload: bytes, code: int, reason: str) -> None:
        self._close_sent = (code, reason)
        self._pending_pong = None
        self._write(_CLOSE, payload)

    @property
    def half_close(self) -> bool:
        """Whether this end should now end its direction of the TCP stream, after all queued bytes.

        A server does so when the closing handshake is over (section 7.1.1 has it close first) and
        either end does when it fails the connection; reading goes on until the peer's end comes.
        """
        return self.state is _ENDING and (not self._client or self._close_received is None)

    # --- what waits to be written ----------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """The bytes to write, and forget them; empty when there are none."""
        data = self._lone if self._outgoing is None else b"".join(self._outgoing)
        self._lone = b""
        self._outgoing = None
        self.unsent_size = 0
        return data

    def pieces_to_send(self) -> list[bytes]:
        """What :meth:`data_to_send` would return, in pieces: nobody has copied a large message into its frame."""
        pieces = self._outgoing
        if pieces is None:
            pieces = [self._lone] if self._lone else []
        self._lone = b""
        self._outgoing = None
        self.unsent_size = 0
        return pieces

    def put_back(self, rest: bytes) -> None:
        """Take the end of what :meth:`data_to_send` gave, as it was not written: it goes first."""
        if rest and self.state is not _CLOSED:
            self._outgoing = [rest, *self.pieces_to_send()]
            self.unsent_size = sum(map(len, self._outgoing))

    def _drop_unsent(self) -> None:
        self._lone = b""
        self._outgoing = None
        self.unsent_size = 0

    def _write(self, opcode: int, payload: bytes | str, first_bits: int = _FIN) -> None:
        self.frames_sent += 1
        if len(payload) >= _LARGE and not self._client and isinstance(payload, bytes):
            # As it is, behind its header: to copy it costs more than one piece more to write.
            self._queue(encode_header(opcode, len(payload), None, first_bits))
            self._queue(payload)
        else:
            self._queue(encode_frame(opcode, payload, self._next_key() if self._client else None, first_bits))

    def _queue(self, piece: bytes) -> None:
        if self.unsent_size == 0:
            self._lone = piece
        elif self._outgoing is None:
            self._outgoing = [self._lone, piece]
        else:
            self._outgoing.append(piece)
        self.bytes_sent += len(piece)
        self.unsent_size += len(piece)

    def _next_key(self) -> bytes:
        # "The masking key needs to be unpredictable" (section 5.3): a strong source, 4 fresh bytes a frame.
        if not self._keys:
            # Cut all at once: to cut one off the rest each time took a seventh of what an echo takes here.
            self._keys = list(_KEYS.unpack(os.urandom(_KEYS.size)))
        key: bytes = self._keys.pop()
        return key
