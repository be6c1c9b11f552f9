"""Work on a client's behalf that stops when the client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from ..errors import ConnectionClosed
from ..runtime.greenlets import new_poll

__all__ = ["cancel_on_disconnect", "wait_disconnected"]

# Seconds between two polls. The socket belongs to the server and is not registered with any event loop.
_POLL_INTERVAL: Final = 0.1
# Reported even while bytes before the end of the stream are unread.
_DISCONNECTED: Final = getattr(select, "POLLRDHUP", 0)


@contextlib.asynccontextmanager
async def cancel_on_disconnect(disconnected: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Cancel the body of this context when the client disconnects.

    Args:
        disconnected: called once; waits until the client disconnects, and is cancelled when the context ends.

    Raises:
        ConnectionClosed: the client has disconnected.
    """

    async def watch() -> None:
        await disconnected()
        timeout.reschedule(0.0)

    timeout = asyncio.timeout(None)
    try:
        async with timeout:
            watching = asyncio.ensure_future(watch())
            try:
                yield
            finally:
                watching.cancel()
    except TimeoutError:
        if not timeout.expired():
            raise
        raise ConnectionClosed(1006, "the client disconnected before the answer") from None


async def wait_disconnected(descriptor: int) -> None:
    """Wait until the peer of a socket ends its stream; forever where the platform does not report that.

    Args:
        descriptor: the socket's; -1 for none.
    """
    poll = new_poll()
    if poll is None or descriptor < 0:
        await asyncio.get_running_loop().create_future()
        return
    poll.register(descriptor, _DISCONNECTED)
    while not poll.poll(0):  # noqa: ASYNC110  # there is no event to wait for
        await asyncio.sleep(_POLL_INTERVAL)
