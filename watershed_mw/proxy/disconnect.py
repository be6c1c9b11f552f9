"""What is asked in a client's name is asked no longer than the client waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from ..errors import ConnectionClosed
from ..runtime.greenlets import new_poll

__all__ = ["cancel_on_disconnect", "left"]

# Seconds between two looks at a socket that is the server's, and that no event loop can wait for.
_LOOK_EVERY: Final = 0.1
# Told whatever was sent before, which nobody has read yet.
_GONE: Final = getattr(select, "POLLRDHUP", 0)


@contextlib.asynccontextmanager
async def cancel_on_disconnect(gone: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Cancel what is done in this context once the client has left.

    Args:
        gone: called once; what it returns ends when the client has left, and is cancelled when the context ends.

    Raises:
        ConnectionClosed: it has left.
    """

    async def watch() -> None:
        await gone()
        until.reschedule(0.0)

    until = asyncio.timeout(None)
    try:
        async with until:
            watching = asyncio.ensure_future(watch())
            try:
                yield
            finally:
                watching.cancel()
    except TimeoutError:
        if not until.expired():
            raise
        raise ConnectionClosed(1006, "the client has left before it was answered") from None


async def left(descriptor: int) -> None:
    """Wait until the peer of a socket has ended its stream; for ever where the platform does not tell.

    Args:
        descriptor: -1 for none.
    """
    poll = new_poll()
    if poll is None or descriptor < 0:
        await asyncio.get_running_loop().create_future()
        return
    poll.register(descriptor, _GONE)
    while not poll.poll(0):  # noqa: ASYNC110  # nobody tells
        await asyncio.sleep(_LOOK_EVERY)
