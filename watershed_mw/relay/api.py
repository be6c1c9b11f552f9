"""The relay object that applications hold: any thread may await or close it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any

from ..core.codes import encode_close
from ..runtime.loop_end import end_with
from ..runtime.loop_thread import Serving, at_failure, background_loop
from ..runtime.registry import Registry
from .engine import Engine
from .outcome import Outcome, RelayEnd, RelayResult
from .side import Side
from .streams import Stream, can_relay, check_stream, side_of

__all__ = ["Relay", "live_relays", "relay"]

_live: Registry[Relay] = Registry()


class Relay:
    """A relay between a client and a server, made by :func:`relay`. Await it for its result.

    Attributes:
        shutdown_code: close code for both sides when the process stops; None leaves that to the application.
    """

    __slots__ = ("__weakref__", "_engine", "_loop", "_outcome", "shutdown_code")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, client: Side, server: Side, shutdown_code: int | None, **limits: Any
    ) -> None:
        self._loop = loop
        self._outcome = Outcome()
        self._engine = Engine(loop, client, server, on_end=self._set_result, **limits)
        self.shutdown_code = shutdown_code

    def _set_result(self, result: RelayResult) -> None:
        _live.discard(self)
        self._outcome.set(result)

    @property
    def close_timeout(self) -> float:
        """Seconds for the peers to close once the relay is ending."""
        return self._engine.close_timeout

    @property
    def gone(self) -> bool:
        """Whether both streams are closed."""
        return self._outcome.result is not None

    @property
    def at_work(self) -> bool:
        """False: a relay has no handlers."""
        return False

    def cancel_handlers(self) -> None:
        """Do nothing: a relay has no handlers."""

    @property
    def ending(self) -> bool:
        """Whether the relay is ending: it forwards only the rest of frames in progress."""
        return self._engine.end is not None

    @property
    def result(self) -> RelayResult | None:
        """The result; None until the relay has ended."""
        return self._outcome.result

    def start_close(self, reason: str = "", *, code: int = 1001) -> None:
        """Close both sides with a Close frame after the current frame, and return immediately. From any thread.

        A side that was already sent a Close frame gets no second one, and a side in the middle of a frame that never
        completes gets none. Both sides are closed after at most ``close_timeout``.

        Args:
            reason: close reason, at most 123 bytes in UTF-8.
            code: close code, by default 1001 (going away).

        Raises:
            LocalProtocolError: the code or the reason cannot be sent.
        """
        payload = encode_close(code, reason)
        self._call(self._engine.end_with_close, RelayEnd.DRAINED, payload)

    def begin_end(self, reason: str = "", *, code: int = 1001) -> None:
        """Alias of :meth:`start_close`, its former name."""
        self.start_close(reason, code=code)

    def break_off(self) -> None:
        """Alias of :meth:`abort`, its former name."""
        self.abort()

    def abort(self) -> None:
        """Abort both streams immediately; unsent bytes are lost. From any thread."""
        self._call(self._engine.abort)

    def wait(self, timeout: float | None = None) -> RelayResult:
        """Block until the relay has ended. From any thread except that of the relay's event loop.

        Args:
            timeout: seconds; None for no limit.

        Raises:
            TimeoutError: the relay has not ended in time.
        """
        return self._outcome.wait(timeout)

    def __await__(self) -> Generator[Any, None, RelayResult]:
        return self._outcome.__await__()

    def when_gone(self, call: Callable[[], object]) -> None:
        """Call ``call`` when both streams are closed, immediately if they already are; in an arbitrary thread."""
        self._outcome.add_listener(call)

    def _call(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and both streams with it
            self._loop.call_soon_threadsafe(call, *args, context=Context())


def relay(
    a: Stream,
    b: Stream,
    *,
    idle_timeout: float | None = 3600.0,
    close_timeout: float = 10.0,
    max_duration: float | None = None,
    max_bytes: int | None = None,
    shutdown_code: int | None = None,
) -> Relay:
    """Relay bytes between two streams, in both directions, until both have ended.

    When one stream ends, the relay ends the other after everything received has been written, while the opposite
    direction continues; over TLS both directions end together. The relay runs on the running event loop, or on a
    background loop if none is running. This function returns immediately.

    Args:
        a: stream of the WebSocket client. The relay owns it from now on, as well as ``b``.
        b: stream of the WebSocket server.
        idle_timeout: seconds without a byte in either direction after which both sides get a Close frame (1001); None
            for no limit.
        close_timeout: seconds for the peers to answer a Close frame, to read unsent bytes once the relay is ending,
            and to continue to send after the opposite direction has ended.
        max_duration: seconds after which both sides get a Close frame (1001); None for no limit.
        max_bytes: bytes in both directions together after which both sides get a Close frame (1008) or, in the middle
            of a frame, the end of their stream; None for no limit.
        shutdown_code: see :class:`Relay`.

    Raises:
        TypeError: an argument is not a supported stream.
        ValueError: a stream is not connected, both are the same, or a limit is not positive.
        ConnectionClosed: a stream is closed.
        NotImplementedError: the loop is Windows' ProactorEventLoop, which cannot wait for such sockets.
    """
    limits = {
        "idle_timeout": idle_timeout,
        "close_timeout": close_timeout,
        "max_duration": max_duration,
        "max_bytes": max_bytes,
    }
    for name, limit in limits.items():
        if limit is not None and not limit > 0:
            raise ValueError(f"expected {name} above 0, got {limit!r}")
    if a is b:
        raise ValueError("expected two streams, got the same twice")
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    for stream in (a, b):
        check_stream(stream, running)
    loop = running or background_loop()[0]
    if not can_relay(loop):
        raise NotImplementedError(f"expected an event loop with add_reader(), got {type(loop).__name__}")
    client, server = side_of(a, loop, close_timeout), side_of(b, loop, close_timeout)
    made = Relay(
        loop,
        client,
        server,
        shutdown_code,
        **limits,
    )
    _live.add(made)
    # In a new context: the caller's may refer to a web framework's request, which would live as long as the relay.
    if running is not None:
        end_with(running, _living)
        Context().run(made._engine.start)
    else:
        loop.call_soon_threadsafe(made._engine.start, context=Context())
    return made


def live_relays() -> list[Relay]:
    """All relays of this process that have not ended, oldest first."""
    return sorted(_live, key=lambda relay: relay._engine.began)


def _living(loop: asyncio.AbstractEventLoop) -> list[Relay]:
    return [relay for relay in live_relays() if relay._loop is loop]


def _on_loop_failure(serving: Serving) -> None:
    for relay in _living(serving.loop):
        relay._engine.loop_failed()


at_failure(_on_loop_failure)
