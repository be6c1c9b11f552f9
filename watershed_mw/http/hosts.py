"""The host names that a server answers to, checked against the Host field of a request (RFC 9110 section 7.2).

With DNS rebinding an attacker's page makes a browser reach this machine under the attacker's name, so the request's
Host and Origin agree. Only a list of names can distinguish such a request from one that is meant for this server.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from ..core.handshake.headers import is_host

__all__ = ["HostList"]


class HostList:
    """The host names that a server answers to, on any port.

    IP addresses are always allowed, as no site can make a browser send one in place of the site's name. So are
    ``localhost`` and its subdomains, which browsers resolve to this machine themselves (RFC 6761 section 6.3).

    Args:
        names: further names; ``*.example.org`` for every subdomain, ``*`` for every name.

    Raises:
        ValueError: an entry is not a host name.
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
