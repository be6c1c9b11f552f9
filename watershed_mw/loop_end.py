"""The end of an event loop: whatever is still open on it gets its Close, rather than a stream that just ends.

``asyncio.run`` cancels the tasks that are left, and then closes the asynchronous generators that are; it has no other
hook. So each loop with connections has such a generator, which waits for nothing else. A loop that is closed without
``shutdown_asyncgens()`` tells nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Protocol
from weakref import WeakKeyDictionary

__all__ = ["Ends", "end_with"]

# Seconds that peers have to answer the Close.
_GRACE = 0.5
# How often, in seconds, they are looked at.
_LOOK_EVERY = 0.005
# Seconds, some thirty years.
_NEVER = 1e9


class Ends(Protocol):
    """What can be open when its event loop ends."""

    @property
    def gone(self) -> bool:
        """Whether its streams have been closed."""

    def begin_end(self, reason: str = "", *, code: int = 1001) -> None:
        """Send a Close frame, and wait for nothing."""

    def break_off(self) -> None:
        """Close the streams at once."""


Living = Callable[[asyncio.AbstractEventLoop], Iterable[Ends]]

_known: WeakKeyDictionary[asyncio.AbstractEventLoop, set[Living]] = WeakKeyDictionary()


def end_with(loop: asyncio.AbstractEventLoop, living: Living) -> None:
    """See to it that what lives on the running ``loop`` is ended with it: a Close with 1001, and half a second.

    Args:
        loop: the event loop of this thread, running.
        living: gives what is open on a loop; known by its identity, so that the same one can come again and again.
    """
    known = _known.get(loop)
    if known is None:
        known = _known[loop] = set()
        waiting = _wait_for_end()
        try:
            waiting.__anext__().send(None)
        except StopIteration:
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
        await _end([one for living in _known.get(loop, ()) for one in living(loop)])


async def _end(living: list[Ends]) -> None:
    for one in living:
        one.begin_end("the event loop ends", code=1001)
    loop = asyncio.get_running_loop()
    until = loop.time() + _GRACE
    while not all(one.gone for one in living) and loop.time() < until:  # noqa: ASYNC110  # they share no event
        await asyncio.sleep(_LOOK_EVERY)
    for one in living:
        if not one.gone:
            one.break_off()
    await asyncio.sleep(0)  # for what the transports still do
