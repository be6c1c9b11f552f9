"""``watershed-mw echo``: a server to test clients against."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from ..asgi.channels import Receive, Scope, Send
from ..asgi.middleware import WatershedASGI
from .hosts import LOOPBACK_ORIGINS, HostGuard, as_origins, page_options
from .output import describe_end, dump, say, shown
from .parameters import Address
from .serving import serve, serving_options

__all__ = ["Echo", "echo"]


class Echo:
    """ASGI application that sends every message back.

    Args:
        console: the console for messages; None for no output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] != "websocket":
            await _refuse(send)
            return
        connection = await scope["watershed"].through(receive, send).accept()
        async for message in connection:
            if self._console is not None:
                self._show(connection.remote, message)
            await connection.send(message)
        if self._console is not None:
            end = describe_end(connection.close_code or 1006, connection.close_reason or "")
            say(self._console, f"{connection.remote} {end}", "dim")

    def _show(self, remote: str, message: str | bytes) -> None:
        assert self._console is not None
        if isinstance(message, str):
            say(self._console, f"{remote} TEXT {shown(message)}")
        else:
            say(self._console, "\n".join([f"{remote} BINARY, {len(message):,} bytes", *dump(message)]))


async def _refuse(send: Send) -> None:
    """Refuse a plain HTTP request with 426 (RFC 9110 section 15.5.22)."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"upgrade", b"websocket"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 426, "headers": headers})
    await send({"type": "http.response.body", "body": b"This is a WebSocket server that echoes.\n"})


@click.command(short_help="Run an echo server.")
@serving_options("127.0.0.1:8765")
@click.option("-p", "--protocol", "protocols", multiple=True, metavar="NAME", help="Support a subprotocol; repeatable.")
@page_options("Pages of its own host, and of localhost on every port,")
def echo(
    listen: Address,
    protocols: tuple[str, ...],
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    verbose: bool,
) -> None:
    """Echo every TEXT and BINARY message, on every path.

    Programs and pages of this machine may connect. Pages of other web sites in a local browser may not, unless
    --allow-origin names them.

    It prints its address once it listens; SIGINT and SIGTERM stop it.

    \b
    watershed-mw echo --listen :8765 --protocol chat.v1
    watershed-mw echo --listen :8765 --allow-host echo.example --allow-origin https://app.example
    watershed-mw echo --listen 127.0.0.1:0 --tls-cert cert.pem --tls-key key.pem
    """
    app = Echo(Console(stderr=True) if verbose else None)
    allowed = as_origins((*LOOPBACK_ORIGINS, *origins))
    try:
        served = WatershedASGI(app, origins=allowed, protocols=protocols)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error
    serve(HostGuard(served, hosts, listen), listen, tls_cert, tls_key, verbose)
