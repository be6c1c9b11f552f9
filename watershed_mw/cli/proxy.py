"""``watershed-mw proxy``: :class:`~watershed_mw.proxy.WebSocketProxy` in front of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .hosts import HostGuard, as_origins, page_options
from .output import Failure
from .parameters import Address, as_headers, client_context
from .serving import serve, serving_options

__all__ = ["proxy"]

_SECONDS = click.FloatRange(min=0, min_open=True)


@click.command(short_help="Run a proxy in front of a WebSocket server.")
@serving_options(None)
@click.option(
    "--to", "upstream", required=True, metavar="URL", help="The upstream: ws://, wss://, http(s):// or unix:PATH."
)
@click.option("--keep-host/--no-keep-host", default=True, show_default=True, help="Forward the client's Host header.")
@click.option("--strip-prefix", default="", metavar="PATH", help="Strip this prefix from the path.")
@click.option(
    "-H",
    "--header",
    "headers",
    multiple=True,
    callback=as_headers,
    metavar="'NAME: VALUE'",
    help="Send this header field upstream, instead of the client's; repeatable.",
)
@click.option(
    "--open-timeout",
    type=_SECONDS,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Limit for the upstream's response.",
)
@click.option(
    "--idle-timeout",
    type=_SECONDS,
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="Close a connection after this long without traffic.",
)
@click.option(
    "--max-duration", type=_SECONDS, metavar="SECONDS", help="Close a connection after this long; default no limit."
)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Close a connection after this many bytes; default no limit.",
)
@page_options("Its own pages")
@click.option("-k", "--insecure", is_flag=True, help="Do not verify the upstream's certificate.")
@click.option(
    "--cacert",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="For the upstream, trust only the certificate authorities in this PEM file.",
)
def proxy(
    listen: Address,
    tls_cert: Path | None,
    tls_key: Path | None,
    verbose: bool,
    upstream: str,
    insecure: bool,
    cacert: Path | None,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    **options: Any,
) -> None:
    """Forward every WebSocket connection to another server, byte for byte.

    The upstream sees the client's handshake and chooses subprotocol and compression. Requests for other host names
    (--allow-host) and from pages of other origins (--allow-origin) get a 403.

    It prints its address once it listens; SIGINT and SIGTERM stop it.

    \b
    watershed-mw proxy --listen :8080 --to ws://127.0.0.1:9000
    watershed-mw proxy --listen 127.0.0.1:8080 --to unix:/run/chat.sock --strip-prefix /chat
    watershed-mw proxy --listen :8080 --to ws://127.0.0.1:9000 --allow-host ws.example --allow-origin https://app.example
    """
    if origins:
        options["origins"] = as_origins(origins)
    options["ssl"] = client_context(insecure, cacert)
    try:
        from ..proxy import WebSocketProxy  # slow to import, and needs httpx
    except ImportError as error:
        raise Failure(str(error)) from error
    try:
        app = WebSocketProxy(upstream, **options)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error
    serve(HostGuard(app, hosts, listen), listen, tls_cert, tls_key, verbose)
