"""Parsers of options that several commands share: header fields, listening addresses, TLS."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

__all__ = ["Address", "as_address", "as_headers", "client_context"]

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110 section 5.6.2


def as_headers(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> list[tuple[str, str]]:
    """Parse header fields of the form ``Name: value``.

    Raises:
        click.BadParameter: a value is not a header field.
    """
    pairs = []
    for value in values:
        name, colon, content = value.partition(":")
        if not colon or not _NAME.fullmatch(name) or not content.replace("\t", " ").isprintable():
            raise click.BadParameter(f"expected 'Name: value', got {value!r}", ctx, param)
        pairs.append((name, content.strip(" \t")))
    return pairs


class Address(NamedTuple):
    """A host, empty for all addresses of this machine, and a port, 0 for any free one."""

    host: str
    port: int

    def listen(self) -> list[socket.socket]:
        """Open listening sockets, one for each address of the host, all on the same port.

        Raises:
            OSError: the host is unknown, or the address is in use or not permitted.
        """
        # Separate sockets for IPv4 and IPv6: on a shared one, IPv4 clients have addresses such as ::ffff:127.0.0.1.
        hosts = [self.host] if self.host else ["0.0.0.0", "::"]
        sockets: list[socket.socket] = []
        port = self.port
        try:
            for host in hosts:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                for family, _, _, _, place in dict.fromkeys(found):
                    try:
                        sockets.append(socket.create_server((place[0], port, *place[2:]), family=family))
                    except OSError as error:
                        # A name may resolve to ::1 although IPv6 is disabled.
                        if not sockets or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                            raise
                    port = sockets[0].getsockname()[1]
        except OSError:
            for one in sockets:
                one.close()
            raise
        return sockets


def as_address(ctx: click.Context, param: click.Parameter, value: str) -> Address:
    """Parse ``[HOST]:PORT``; an IPv6 address is in brackets.

    Raises:
        click.BadParameter: the value is not an address.
    """
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535 or (":" in host and not bracketed):
        raise click.BadParameter(
            f"expected [HOST]:PORT, such as :8080, 127.0.0.1:0 or [::1]:8080, got {value!r}", ctx, param
        )
    return Address(host[1:-1] if bracketed else host, int(port))


def client_context(insecure: bool, cacert: Path | None) -> ssl.SSLContext | None:
    """The TLS context for ``--insecure`` and ``--cacert``; None for the default.

    Raises:
        click.UsageError: both were given, or the file holds no certificates.
    """
    if insecure and cacert is not None:
        raise click.UsageError("expected --insecure or --cacert, got both")
    if cacert is not None:
        try:
            return ssl.create_default_context(cafile=cacert)
        except (OSError, ssl.SSLError) as error:
            raise click.UsageError(f"expected certificates in PEM form in {cacert}: {error}") from error
    if insecure:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    return None
