"""What the threads flavour has to write: queued by any thread, written by the one that holds the writer's role."""

from __future__ import annotations

import threading
import time

from ...core.states import State
from ..base import WatershedConnection, logger
from .stream import SharedStream

__all__ = ["Writer"]

# Seconds that a sender waits for another thread to note what it has written before the stream was broken.
_NOTED_WITHIN = 1.0
_LOOK_AGAIN = 0.05

_CLOSED = State.CLOSED


class Writer:
    """Writes to the stream of one connection, which is an argument where it is traced or logged.

    Args:
        stream: what the connection's threads share.
    """

    __slots__ = ("_half_closed", "_stream")

    def __init__(self, stream: SharedStream) -> None:
        self._stream = stream
        self._half_closed = False

    @property
    def pending(self) -> bool:
        """Whether there is something to write."""
        core = self._stream.core
        return bool(core.outgoing.unsent_size or self._stream.socket.write_buffer or core.write_paused)

    def write_some(self, connection: WatershedConnection) -> bool:
        """Write what the kernel takes at once, as the thread that writes; False when something remains."""
        stream = self._stream
        sock, core, lock = stream.socket, stream.core, stream.turns.lock
        while True:
            if not sock.write_buffer:
                with lock:
                    if core.write_paused:
                        core.writing_resumed()
                    if stream.tracer is not None:
                        stream.tracer.sent_close(connection, core.close_sent)
                    if not core.outgoing.unsent_size:
                        return True
                    stream.load()
            sock.send()
            if sock.broken:
                with lock:
                    self.give_up(connection)
                return True
            if sock.write_buffer:
                with lock:
                    core.write_paused = True
                return False
            stream.written = stream.loaded

    def flush(self, connection: WatershedConnection) -> None:
        """Write what the kernel takes at once, unless a thread is writing, which looks again when it stops."""
        turns = self._stream.turns
        me = threading.get_ident()
        done = True
        while done and self.pending:
            writing = False
            try:
                with turns.lock:
                    if turns.writer:
                        return
                    turns.writer = me
                    writing = True
                done = self.write_some(connection)
            finally:
                if writing:
                    turns.writer = 0

    def must_wait_for(self, position: int) -> bool:
        """Whether what was queued up to ``position`` has yet to be written, and this thread can wait for that."""
        stream = self._stream
        if stream.written >= position or not self.pending or stream.core.state is _CLOSED:
            return False
        # Else this is the handler of a signal within a call that writes, and goes on when the handler returns.
        return stream.turns.writer != threading.get_ident()

    def has_written(self, position: int) -> bool:
        """Whether the kernel took everything up to ``position`` before the connection ended."""
        stream = self._stream
        turns = stream.turns
        until = time.monotonic() + _NOTED_WITHIN
        me = threading.get_ident()
        # Another thread may have written it and not noted that yet. The stream is shut down, so it returns soon.
        while stream.written < position and turns.writer > 0 and turns.writer != me and time.monotonic() < until:
            with turns.lock:
                gate = turns.make_gate()
            turns.wait_at(gate, until, _LOOK_AGAIN)
        return stream.written >= position

    def half_close(self) -> None:
        """End this direction of the stream, once, when everything is written and no other thread is writing."""
        turns = self._stream.turns
        writing = False
        if self._half_closed or self.pending:
            return
        try:
            with turns.lock:
                if turns.writer:
                    return
                turns.writer = threading.get_ident()
                writing = True
                self._half_closed = True
            self._stream.socket.half_close()
        finally:
            if writing:
                turns.writer = 0

    def give_up(self, connection: WatershedConnection) -> None:
        """Nothing more can be written, or it is unknown what was: break the stream; with the lock held."""
        stream = self._stream
        core, sock = stream.core, stream.socket
        if sock.torn and core.state is not _CLOSED:
            logger.error(
                "%r ends: a signal handler interrupted OpenSSL while it read or wrote, and bytes may be lost",
                connection,
            )
            core.abort()
        core.receive_eof()
        core.write_paused = False
        sock.shutdown()
