"""send(2) past an event loop's transport, for replies that fit into the kernel's buffer.

uvloop's and asyncio's transports take about half a microsecond to do the same, a tenth of the echo of a small message.

The risks: bytes overtake what the transport still holds, or reach a descriptor that has been closed and given to
another socket. So only transports that are known to hand bytes to send(2) unchanged are bypassed, only while nothing
waits in them, and only on a descriptor that they have not reported lost. Whatever the kernel does not take goes to the
transport.

``WATERSHED_MW_RAW_SEND=0`` in the environment, when the package is first imported, switches the bypass off; the
interpreted build has none.
"""

from __future__ import annotations

import asyncio
import os

__all__ = ["descriptor_to_bypass", "kind_of"]

_ENABLED = os.environ.get("WATERSHED_MW_RAW_SEND", "1") != "0"

# They do nothing but send, to a descriptor that is theirs until they report it lost.
_PLAIN_TRANSPORTS = {
    ("asyncio.selector_events", "_SelectorSocketTransport"),
    ("uvloop.loop", "TCPTransport"),
    ("uvloop.loop", "UnixTransport"),
}


def kind_of(transport: asyncio.BaseTransport) -> tuple[str, str]:
    """Module and name of a transport's class."""
    return type(transport).__module__, type(transport).__qualname__


def descriptor_to_bypass(transport: asyncio.Transport) -> int:
    """The descriptor to send to past ``transport``; -1 where the transport has to do it."""
    if not _ENABLED or kind_of(transport) not in _PLAIN_TRANSPORTS or transport.is_closing():
        return -1
    return int(transport.get_extra_info("socket").fileno())
