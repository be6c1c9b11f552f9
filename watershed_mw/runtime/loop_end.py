"""The end of an event loop: whatever is still open on it gets its Close, rather than a stream that just ends.

``asyncio.run`` cancels the tasks that are left, and then closes the asynchronous generators that are; it has no other
hook. So each loop with connections has such a generator, which waits for nothing else. A loop that is closed without
``shutdown_asyncgens()`` tells nobody, and one that goes on after it tells nobody the next time.
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

# Seconds that the application's own generators have to end, and as many again that peers have to answer the Close, and
# handlers to return.
_GRACE = 0.5
# How often, in seconds, they are looked at.
_LOOK_EVERY = 0.005
# Iterations in which transports and cancelled handlers do what they still have to.
_LAST_TURNS = 5
# Seconds, some thirty years.
_NEVER = 1e9


class Ends(Protocol):
    """What can be open when its event loop ends."""

    @property
    def gone(self) -> bool:
        """Whether its streams have been closed."""

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
    """See to it that what lives on the running ``loop`` is ended with it: a Close with 1001, and half a second.

    Args:
        loop: the event loop of this thread, running.
        living: gives what is open on a loop; known by its identity, so that the same one can come again and again.
    """
    known = _known.get(loop)
    if known is None:
        known = _known.of(loop)
        if sys.get_asyncgen_hooks().finalizer is None or getattr(loop, "_asyncgens_shutdown_called", False):
            return  # it does not close generators, or has done so
        waiting = _wait_for_end()
        try:
            waiting.__anext__().send(None)
        except (StopIteration, ResourceWarning):
            pass  # it has begun, and so the loop knows of it
        # The loop knows of it weakly. Of its timers it is the owner, and lets go of them when it is closed; whatever
        # else held on to the generator would hold on to the loop, which is what the generator's finalizer is bound to.
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
    """Wait for the application's own generators, which are being closed as well: they may still use a connection."""
    me = asyncio.current_task()
    # All but the one that waits for all of them, this one included.
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
    # What ending one of them raises, in the application's trace function, say, must not keep the others open.
    try:
        call()
    except Exception:
        logger.exception("expected %r to end with its event loop, got an exception: the others are ended anyway", one)
