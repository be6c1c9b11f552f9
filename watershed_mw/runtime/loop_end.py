"""The end of an event loop: a connection that is still open on it sends a Close, rather than just ending its stream.

``asyncio.run`` cancels the remaining tasks, and then closes the remaining asynchronous generators; it has no other
hook. So each loop with connections has such a generator, which only waits for that. A loop that is closed without
``shutdown_asyncgens()`` gives no notice, and one that runs on afterwards gives none the next time.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Callable, Iterable
from functools import partial
from typing import Any, Protocol

from .loop_local import LoopLocal

__all__ = ["Ends", "end_with"]

logger = logging.getLogger("watershed_mw")

# Seconds for the application's own generators to end, and as many again for peers to answer the Close and for handlers
# to return.
_GRACE = 0.5
# Seconds between two looks at them.
_LOOK_EVERY = 0.005
# Iterations for transports and cancelled handlers to finish.
_LAST_TURNS = 5
# Seconds: some thirty years.
_NEVER = 1e9


class Ends(Protocol):
    """What can be open when its event loop ends."""

    @property
    def gone(self) -> bool:
        """Whether its streams are closed."""

    @property
    def at_work(self) -> bool:
        """Whether a handler has begun and not returned."""

    def start_close(self, reason: str = "", *, code: int = 1001) -> None:
        """Send a Close frame, and wait for nothing."""

    def abort(self) -> None:
        """Close the streams at once."""

    def cancel_handlers(self) -> None:
        """Cancel the handler that is at work, and those that would follow."""


Living = Callable[[asyncio.AbstractEventLoop], Iterable[Ends]]

_known: LoopLocal[set[Living]] = LoopLocal(set)


def end_with(loop: asyncio.AbstractEventLoop, living: Living) -> None:
    """End what is open on the running ``loop`` together with it: a Close with 1001, and half a second to answer.

    Args:
        loop: the event loop of this thread, running.
        living: returns what is open on a loop; adding the same function again has no effect.
    """
    known = _known.get(loop)
    if known is None:
        known = _known.of(loop)
        if sys.get_asyncgen_hooks().finalizer is None or getattr(loop, "_asyncgens_shutdown_called", False):
            return  # it does not close generators, or has closed them
        waiting = _wait_for_end()
        try:
            waiting.__anext__().send(None)
        except (StopIteration, ResourceWarning):
            pass  # it has started, so the loop knows it
        # The loop refers to it weakly. Its timers it owns, and drops when it is closed; any other reference to the
        # generator would keep the loop alive, which the generator's finalizer is bound to.
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
    # All but the one that awaits all of them, this one included.
    others = {task for task in asyncio.all_tasks() if task is not me and _name(task) != "shutdown_asyncgens"}
    if others:
        await asyncio.wait(others, timeout=_GRACE)


def _name(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__name__", "")


async def _end(living: list[Ends]) -> None:
    for one in living:
        _try(one, partial(one.start_close, "the event loop ends", code=1001))
    loop = asyncio.get_running_loop()
    until = loop.time() + _GRACE
    while any(not one.gone or one.at_work for one in living) and loop.time() < until:  # noqa: ASYNC110  # they share no event
        await asyncio.sleep(_LOOK_EVERY)
    for one in living:
        if not one.gone:
            _try(one, one.abort)
        if one.at_work:
            _try(one, one.cancel_handlers)
    for _ in range(_LAST_TURNS):
        await asyncio.sleep(0)


def _try(one: Ends, call: Callable[[], object]) -> None:
    # What ending one of them raises, for instance in the application's trace function, must not keep the others open.
    try:
        call()
    except Exception:
        logger.exception("expected %r to end with its event loop, got an exception: the others are ended anyway", one)
