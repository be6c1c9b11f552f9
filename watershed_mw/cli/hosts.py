"""Which pages may use a server of the command line: by the Host that they asked for, and by their Origin.

A browser on this machine opens connections for any page of the web. Its Origin says whose page that is, and its Host
by which name it was asked: both have to be on a list, as a page can have its own name point here (DNS rebinding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import click

from ..asgi.middleware import WatershedASGI
from ..asgi.upgrade import App, Receive, Scope, Send
from ..core.handshake.headers import Headers, shown
from ..errors import HandshakeError
from ..http.hosts import HostList
from .parameters import Address

__all__ = ["LOOPBACK_ORIGINS", "HostGuard", "as_origins", "page_options"]

F = TypeVar("F", bound=Callable[..., Any])

# Pages of programs on this machine, on whatever port.
LOOPBACK_ORIGINS: Final = ("localhost:*", "*.localhost:*", "127.0.0.1:*", "[::1]:*")


def page_options(whose: str) -> Callable[[F], F]:
    """The options ``--allow-host`` and ``--allow-origin``.

    Args:
        whose: which pages may connect without the latter, for its help.
    """

    def decorate(command: F) -> F:
        for option in (
            click.option(
                "--allow-origin",
                "--origin",
                "origins",
                multiple=True,
                metavar="ORIGIN",
                help=f"Let pages of this origin connect, '*' for all; repeatable. {whose} always may.",
            ),
            click.option(
                "--allow-host",
                "hosts",
                multiple=True,
                metavar="NAME",
                help="Answer to this host name, '*.example.org' for all below, '*' for all; repeatable. Addresses, "
                "localhost and the host of --listen always pass.",
            ),
        ):
            command = option(command)
        return command

    return decorate


def as_origins(origins: Iterable[str]) -> str | list[str]:
    """Values of ``--allow-origin`` as the option ``origins`` of this package."""
    given = list(origins)
    return "*" if "*" in given else given


class HostGuard:
    """ASGI middleware that refuses WebSockets that were asked for by another name (403).

    Args:
        app: the application.
        hosts: values of ``--allow-host``.
        listen: the address that the server listens on.

    Raises:
        click.UsageError: one of ``hosts`` is no name.
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
        f"expected an address, localhost or a name that this server answers to as the Host, got {host}: start the "
        "server with --allow-host NAME if that name is its own",
        status=403,
    )
    await scope["watershed"].through(receive, send).refuse(error)
