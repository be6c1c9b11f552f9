"""The end of an event loop: connections that are still open on it send a Close instead of only ending their streams.

``asyncio.run`` cancels the remaining tasks, and then closes the remaining asynchronous generators; it has no other
hook. So each loop with connections has such a generator, which only waits to be closed. A loop that is closed without
``shutdown_asyncgens()`` gives no notice, and neither does one that runs again afterwards and ends a second time.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Callable, Iterable
from functools import partial
from typing import Any, Protocol

from .loop_local import LoopLocal

__all__ = ["Closable", "end_with"]

logger = logging.getLogger("watershed_mw")

# Seconds for the application's own generators to end, and again for peers to answer the Close and handlers to return.
_GRACE = 0.5
# Seconds between two polls of the connections.
_POLL_INTERVAL = 0.005
# Iterations for transports and cancelled handlers to finish.
_LAST_TURNS = 5
# About thirty years, in seconds.
_NEVER = 1e9


class Closable(Protocol):
    """A connection or relay that may be open when its event loop ends."""

    @property
    def gone(self) -> bool:
        """Whether its streams are closed."""

    @property
    def at_work(self) -> bool:
        """Whether a handler is running."""

    def start_close(self, reason: str = "", *, code: int = 1001) -> None:
        """Send a Close frame without waiting."""

    def abort(self) -> None:
        """Close the streams immediately."""

    def cancel_handlers(self) -> None:
        """Cancel the running handler, and those that would follow."""


Living = Callable[[asyncio.AbstractEventLoop], Iterable[Closable]]

_known: LoopLocal[set[Living]] = LoopLocal(set)


def end_with(loop: asyncio.AbstractEventLoop, living: Living) -> None:
    """Close everything that is open on ``loop`` when the loop ends: a Close with 1001, and half a second to answer.

    Args:
        loop: this thread's running event loop.
        living: returns what is open on a loop; adding the same function again has no effect.
    """
    known = _known.get(loop)
    if known is None:
        known = _known.of(loop)
        if sys.get_asyncgen_hooks().finalizer is None or getattr(loop, "_asyncgens_shutdown_called", False):
            return  # the loop does not close generators, or has already closed them
        waiting = _wait_for_end()
        try:
            waiting.__anext__().send(None)
        except (StopIteration, ResourceWarning):
            pass  # the generator has started, so the loop tracks it
        # The loop refers to the generator only weakly, so a timer of the loop keeps it alive until the loop is closed.
        # Any other reference would also keep the loop alive, as the generator's finalizer is bound to it.
        loop.call_later(_NEVER, waiting.aclose)
    known.add(living)


async def _wait_for_end() -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        loop = asyncio.get_running_loop()
        await _others_end()
        await _end([one for living in _known.of(loop) for one in living(loop)])


async def _others_end() -> None:
    """Wait for the application's own generators, which are closed at the same time: they may still use a connection."""
    me = asyncio.current_task()
    # The task shutdown_asyncgens() awaits all generators, this one included.
    others = {task for task in asyncio.all_tasks() if task is not me and _name(task) != "shutdown_asyncgens"}
    if others:
        await asyncio.wait(others, timeout=_GRACE)


def _name(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__name__", "")


async def _end(living: list[Closable]) -> None:
    for one in living:
        _try(one, partial(one.start_close, "the event loop ends", code=1001))
    loop = asyncio.get_running_loop()
    until = loop.time() + _GRACE
    while any(not one.gone or one.at_work for one in living) and loop.time() < until:  # noqa: ASYNC110  # no common event
        await asyncio.sleep(_POLL_INTERVAL)
    for one in living:
        if not one.gone:
            _try(one, one.abort)
        if one.at_work:
            _try(one, one.cancel_handlers)
    for _ in range(_LAST_TURNS):
        await asyncio.sleep(0)


def _try(one: Closable, call: Callable[[], object]) -> None:
    # An exception from one of them, such as in the application's trace function, must not keep the others open.
    try:
        call()
    except Exception:
        logger.exception("expected %r to end with its event loop, got an exception: the others still end", one)
