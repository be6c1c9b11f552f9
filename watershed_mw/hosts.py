"""The Host header field (RFC 9110 section 7.2): its grammar, and which names a server answers to.

A page of another site can make a browser ask this machine by a name of its own (DNS rebinding): the request then has a
Host and an Origin that agree. Only a list of names tells it from a request that was meant for this server.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

__all__ = ["HostList", "split_host"]

# A reg-name and a port (RFC 3986 section 3.2.2), without the comma: WSGI servers join fields that came twice by it.
_NAME = re.compile(r"((?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+)(?::([0-9]*))?")
_IPV6 = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]*))?")
_HIGHEST_PORT = 65535


def split_host(value: str) -> tuple[str, int | None] | None:
    """A Host field as name or address (lower case, without brackets) and port; None where it is none.

    Args:
        value: the field's value.
    """
    ipv6 = _IPV6.fullmatch(value)
    match = ipv6 or _NAME.fullmatch(value)
    if match is None:
        return None
    host, port = match[1].lower(), match[2]
    if (port and int(port[:6]) > _HIGHEST_PORT) or (
        ipv6 is not None and not isinstance(_address(host), ipaddress.IPv6Address)
    ):
        return None
    return host, int(port) if port else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


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
            if name != "*" and ("*" in bare or ":" in bare or split_host(bare) is None):
                raise ValueError(f"expected a host name such as app.example, *.example.org or *, got {name!r}")
        self._names = [name.lower().rstrip(".") for name in names]

    def allows(self, value: str) -> bool:
        """Whether a request with this Host field is for this server."""
        parts = split_host(value)
        if parts is None:
            return False
        host = parts[0].rstrip(".")
        if _address(host) is not None or host == "localhost" or host.endswith(".localhost"):
            return True
        return any(
            name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]) and host != name[2:])
            for name in self._names
        )
