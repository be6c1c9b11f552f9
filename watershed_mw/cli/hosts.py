"""Restricts which web pages may use a server of the command line, by Host and Origin.

A browser on this machine opens connections for any page on the web. Origin names the page's site, Host the server. Both
are checked, because a site can make its own name resolve to this machine (DNS rebinding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import click

from ..asgi.channels import App, Receive, Scope, Send
from ..asgi.middleware import WatershedASGI
from ..core.handshake.headers import Headers, shown
from ..errors import HandshakeError
from ..http.hosts import HostList
from .parameters import Address

__all__ = ["LOOPBACK_ORIGINS", "HostGuard", "as_origins", "page_options"]

F = TypeVar("F", bound=Callable[..., Any])

# Pages of programs on this machine, on any port.
LOOPBACK_ORIGINS: Final = ("localhost:*", "*.localhost:*", "127.0.0.1:*", "[::1]:*")


def page_options(whose: str) -> Callable[[F], F]:
    """The options ``--allow-host`` and ``--allow-origin``.

    Args:
        whose: for the help text, the pages that may connect without ``--allow-origin``.
    """

    def decorate(command: F) -> F:
        for option in (
            click.option(
                "--allow-origin",
                "--origin",
                "origins",
                multiple=True,
                metavar="ORIGIN",
                help=f"Allow pages of this origin, '*' for all; repeatable. {whose} are always allowed.",
            ),
            click.option(
                "--allow-host",
                "hosts",
                multiple=True,
                metavar="NAME",
                help="Accept this host name, '*.example.org' for its subdomains, '*' for all; repeatable. "
                "IP addresses, localhost and the host of --listen are always accepted.",
            ),
        ):
            command = option(command)
        return command

    return decorate


def as_origins(origins: Iterable[str]) -> str | list[str]:
    """The values of ``--allow-origin`` as the option ``origins`` of this package."""
    given = list(origins)
    return "*" if "*" in given else given


class HostGuard:
    """ASGI middleware that refuses WebSocket requests for other host names (403).

    Args:
        app: the application.
        hosts: the values of ``--allow-host``.
        listen: the address that the server listens on.

    Raises:
        click.UsageError: one of ``hosts`` is not a host name.
    """

    def __init__(self, app: App, hosts: Iterable[str], listen: Address) -> None:
        self._app = app
        try:
            self._list = HostList([*hosts, *([listen.host] if listen.host and ":" not in listen.host else [])])
        except ValueError as error:
            raise click.UsageError(f"{error} for --allow-host") from error
        self._refusing = WatershedASGI(_refuse, origins="*")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] == "websocket" and not self._list.allows(Headers(scope["headers"]).get("host")):
            await self._refusing(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    host = shown(Headers(scope["headers"]).get("host"))
    error = HandshakeError(
        f"expected an IP address, localhost or an allowed name as the Host, got {host}: if that name belongs to this "
        "server, start it with --allow-host NAME",
        status=403,
    )
    await scope["watershed"].through(receive, send).refuse(error)
