"""Bypasses an event loop's transport with send(2), for replies that fit into the kernel's send buffer.

Figure: the transports of asyncio and uvloop add about half a microsecond, a tenth of the echo of a small message.

Risk: bytes could overtake those that the transport still buffers, or reach a descriptor that was closed and reused for
another socket. So only transports known to pass bytes to send(2) unchanged are bypassed, only while their write buffer
is empty, and only until they report the connection lost. Bytes that the kernel does not accept go to the transport.

Switch: ``WATERSHED_MW_RAW_SEND=0`` in the environment, when the package is first imported. The interpreted build has no
bypass.
"""

from __future__ import annotations

import asyncio
import os

__all__ = ["descriptor_to_bypass", "kind_of"]

_ENABLED = os.environ.get("WATERSHED_MW_RAW_SEND", "1") != "0"

# They only send, on a descriptor that they own until they report the connection lost.
_PLAIN_TRANSPORTS = {
    ("asyncio.selector_events", "_SelectorSocketTransport"),
    ("uvloop.loop", "TCPTransport"),
    ("uvloop.loop", "UnixTransport"),
}


def kind_of(transport: asyncio.BaseTransport) -> tuple[str, str]:
    """Module and name of a transport's class."""
    return type(transport).__module__, type(transport).__qualname__


def descriptor_to_bypass(transport: asyncio.Transport) -> int:
    """The descriptor for send(2); -1 if ``transport`` must not be bypassed."""
    if not _ENABLED or kind_of(transport) not in _PLAIN_TRANSPORTS or transport.is_closing():
        return -1
    return int(transport.get_extra_info("socket").fileno())
