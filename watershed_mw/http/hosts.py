"""Which names a server answers to, by the Host field of a request (RFC 9110 section 7.2).

A page of another site can make a browser ask this machine by a name of its own (DNS rebinding): the request then has a
Host and an Origin that agree. Only a list of names tells it from a request that was meant for this server.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from ..core.handshake.headers import is_host

__all__ = ["HostList"]


class HostList:
    """The names that a server answers to, on whatever port.

    Addresses always pass, as no site can have a browser use one in place of its own name. So do ``localhost`` and names
    below it, which browsers resolve to this machine themselves (RFC 6761 section 6.3).

    Args:
        names: further names; ``*.example.org`` for all below, ``*`` for every name.

    Raises:
        ValueError: one is no host name.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        names = list(names)
        for name in names:
            bare = name.removeprefix("*.")
            if name != "*" and ("*" in bare or ":" in bare or not is_host(bare)):
                raise ValueError(f"expected a host name such as app.example, *.example.org or *, got {name!r}")
        self._names = [name.lower().rstrip(".") for name in names]

    def allows(self, value: str) -> bool:
        """Whether a request with this Host field is for this server."""
        if not is_host(value):
            return False
        bracketed = value.startswith("[")
        host = (value[1:].partition("]") if bracketed else value.partition(":"))[0].lower().rstrip(".")
        if _is_address(host) or host == "localhost" or host.endswith(".localhost"):
            return True
        return any(
            name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]) and host != name[2:])
            for name in self._names
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
