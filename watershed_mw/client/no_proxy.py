"""NO_PROXY: hosts that are reached without a proxy, as curl, Go and requests read the variable."""

from __future__ import annotations

import ipaddress
import re

import httpx

__all__ = ["is_excepted"]

_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(:(?P<port>[0-9]+))?")
_PORTS = {"http": 80, "https": 443}


def is_excepted(url: httpx.URL, no_proxy: str) -> bool:
    """Whether ``no_proxy`` names the server of this URL.

    It is a list, separated by commas or spaces, of names, which include their subdomains (with or without a dot or
    "*." in front), addresses, networks such as ``10.0.0.0/8`` or ``fd00::/8``, and ``*`` for everything. A port after
    a name or an address (``example.org:443``, ``[::1]:8000``) restricts it to that port.
    """
    host = url.host.lower().removesuffix(".")
    port = url.port or _PORTS.get(url.scheme)
    return any(_matches(entry.lower(), host, port) for entry in re.split(r"[,\s]+", no_proxy) if entry)


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    parts = _HOST_AND_PORT.fullmatch(entry)
    if parts is not None:  # else it is an IPv6 address without brackets, or a network of them
        if parts["port"] and int(parts["port"]) != port:
            return False
        entry = parts["host"].strip("[]")
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        name = entry.removeprefix("*").strip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
    return _is_in(host, network)


def _is_in(host: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and network.version == 4:
        return address.ipv4_mapped is not None and address.ipv4_mapped in network
    return address in network
