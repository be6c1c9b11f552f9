"""Whether a peer is alive and keeps pace: keepalive PINGs and their answers, and how long a message may take to arrive.

This file is compiled as well as interpreted; the C types are in ``liveness.pxd``. It reads no clock: the current time
is an argument, in seconds of a clock that never goes back. What follows when a limit has passed is decided in
:mod:`watershed_mw.core.protocol`.
"""

from __future__ import annotations

from math import inf

from ..errors import LocalProtocolError, RemoteProtocolError
from .codes import MAX_CONTROL_PAYLOAD
from .frames.codec import FrameWriter
from .limits import Limits
from .pace import Arrival
from .pings import Pings

__all__ = ["Liveness"]

_PING = 0x9
_PONG = 0xA


class Liveness:
    """The signs of life of one peer.

    Args:
        limits: gives ``ping_interval``, ``ping_timeout`` and ``message_timeout``.
        outgoing: where PINGs and PONGs are queued.
        now: current time.

    Attributes:
        last_received: when bytes last came.
        latency: seconds from the last answered PING to its PONG, None before the first.
        arrival: the message or control frame that has begun to arrive, None where nothing is incomplete.
    """

    def __init__(self, limits: Limits, outgoing: FrameWriter, now: float) -> None:
        self._ping_interval = inf if limits.ping_interval is None else limits.ping_interval
        self._ping_timeout = inf if limits.ping_timeout is None else limits.ping_timeout
        self._message_timeout = inf if limits.message_timeout is None else limits.message_timeout
        self.last_received = now
        self.latency: float | None = None
        self.arrival: Arrival | None = None
        self._paused_at = 0.0
        self._next_ping = now + self._ping_interval
        # The keepalive PING that waits for its answer: when it was sent (infinity before the first), how many bytes
        # went before it, and how many the kernel had taken when that was last looked at.
        self._ping_sent = inf
        self._ping_position = 0
        self._taken = 0
        self._keepalives = 0
        self._pings: Pings | None = None
        self._outgoing = outgoing
        self._pending_pong: bytes | None = None

    # --- PINGs and PONGs -----------------------------------------------------------------------------

    def ping(self, payload: bytes, now: float) -> None:
        """Queue a PING; its PONG gives the latency.

        Raises:
            LocalProtocolError: more than 125 bytes (section 5.5).
        """
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise LocalProtocolError(f"expected at most 125 bytes in a PING, got {len(payload)}")
        if self._pings is None:
            self._pings = Pings()
        self._pings.sent(payload, now)
        self._outgoing.write(_PING, payload)

    def answer(self, payload: bytes, later: bool) -> None:
        """Queue a PONG, or keep it while the peer does not read: only the newest, which section 5.5.3 allows."""
        if later:
            self._pending_pong = payload
        else:
            self._outgoing.write(_PONG, payload)

    def writing_resumed(self) -> None:
        """Note that the peer reads again: the PONG that was kept is queued."""
        if self._pending_pong is not None:
            self._outgoing.write(_PONG, self._pending_pong)
            self._pending_pong = None

    def forget_pong(self) -> None:
        """Note that no PONG may be sent any more."""
        self._pending_pong = None

    def pong_received(self, payload: bytes, now: float) -> None:
        """Note that a PONG came."""
        if self._pings is None:
            return  # Unsolicited, which section 5.5.3 allows.
        sent = self._pings.answered(payload)
        if sent is not None:
            self.latency = now - sent
        if not self._pings.waiting:
            self._pings = None

    # --- keepalive -----------------------------------------------------------------------------------

    def keepalive_due(self) -> float:
        """When the next keepalive PING is due, or the answer to the last one."""
        return self._ping_sent + self._ping_timeout if self.unanswered() else self._next_ping

    def unanswered(self) -> bool:
        """Whether nothing has come since the last keepalive PING, and that matters."""
        return self._ping_sent != inf and self._ping_timeout != inf and self.last_received <= self._ping_sent

    def ping_to_keep_alive(self, taken: int, now: float) -> None:
        """Queue the next keepalive PING; ``taken`` as for :meth:`silence_proves_nothing`."""
        self._keepalives += 1
        self._ping_position = self._outgoing.bytes_sent
        self._taken = taken
        self.ping(b"keepalive %d" % self._keepalives, now)
        self._ping_sent = now
        self._next_ping = now + self._ping_interval

    def silence_proves_nothing(self, taken: int, unread: bool, now: float) -> bool:
        """Whether a keepalive PING may be unanswered though the peer is alive: it then has ``ping_timeout`` again.

        Args:
            taken: how many of the bytes that were ever queued the kernel has taken.
            unread: whether an answer may be there and has not been read.
            now: current time.
        """
        # Before the peer sees the PING, it has to take what went before it.
        if unread or self._taken < min(self._ping_position, taken):
            self._taken = taken
            self._ping_sent = self.last_received = now
            return True
        return False

    def backlog_read(self, now: float) -> None:
        """Note that bytes that came earlier are looked at only now: an answer among them has ``ping_timeout`` again."""
        if self.last_received <= self._ping_sent < inf:
            self._ping_sent = self.last_received = now

    def silence(self) -> RemoteProtocolError:
        """What fails the connection when a keepalive PING is not answered."""
        return RemoteProtocolError(
            f"expected an answer to a PING within {self._ping_timeout:g} seconds (ping_timeout), got none",
            close_code=1011,
        )

    # --- arrival -------------------------------------------------------------------------------------

    def watch_arrival(self, number: int, header: int, position: int, now: float) -> None:
        """Watch what is incomplete, if not yet watched; the arguments are those of ``Arrival.watch``."""
        if self._message_timeout != inf:
            if self.arrival is None:
                self.arrival = Arrival(self._message_timeout)
            self.arrival.watch(number, header, position, now)

    def reading_paused(self, now: float) -> None:
        """Note that nothing is read from now on."""
        self._paused_at = now

    def reading_resumed(self, now: float) -> None:
        """Note that reading goes on: the pause does not count for ``message_timeout``."""
        self.was_not_read(self._paused_at, now)

    def was_not_read(self, since: float, now: float) -> None:
        """Note that nothing was read between these two times; they do not count for ``message_timeout``."""
        if self.arrival is not None:
            self.arrival.since += now - max(since, self.arrival.since)
