"""``watershed-mw connect``: its options, and the choice between terminal and pipe."""

from __future__ import annotations

import asyncio
import getpass
import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .output import Failure
from .parameters import as_headers, client_context

__all__ = ["connect"]


@click.command(short_help="Talk to a WebSocket server.")
@click.argument("url")
@click.option("-p", "--protocol", "protocols", multiple=True, metavar="NAME", help="Offer a subprotocol; repeatable.")
@click.option(
    "-H",
    "--header",
    "headers",
    multiple=True,
    callback=as_headers,
    metavar="'NAME: VALUE'",
    help="Send a header field; repeatable.",
)
@click.option("-o", "--origin", metavar="ORIGIN", help="Send an Origin header, as browsers do.")
@click.option("-u", "--user", metavar="NAME[:PASSWORD]", help="Authenticate; prompts for a missing password.")
@click.option("-k", "--insecure", is_flag=True, help="Do not verify the server's certificate.")
@click.option(
    "--cacert",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Trust only the certificate authorities in this PEM file.",
)
@click.option("--unix", metavar="PATH", help="Connect to this Unix socket instead of the URL's host.")
@click.option(
    "--proxy", metavar="URL|none", help="HTTP or SOCKS proxy; by default that of the environment (HTTPS_PROXY ...)."
)
@click.option("--no-compression", is_flag=True, help="Do not offer permessage-deflate.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Limit for the whole opening handshake.",
)
@click.option(
    "--max-size",
    type=click.IntRange(min=0),
    default=16 * 2**20,
    show_default=True,
    metavar="BYTES",
    help="Largest message to accept; 0 for no limit.",
)
@click.option("--reconnect", is_flag=True, help="Reconnect after a failure or a close, with growing delays.")
@click.option("--binary", is_flag=True, help="In a pipe: send all of stdin as one BINARY message.")
@click.option("--hex", "as_hex", is_flag=True, help="In a pipe: send and print BINARY messages as lines of hex.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="In a pipe: after the end of stdin, close once no message has arrived for this long; inf: never.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the response's header fields, PINGs, PONGs and counts.")
def connect(
    url: str,
    protocols: tuple[str, ...],
    headers: tuple[tuple[str, str], ...],
    origin: str | None,
    user: str | None,
    insecure: bool,
    cacert: Path | None,
    unix: str | None,
    proxy: str | None,
    no_compression: bool,
    timeout: float,
    max_size: int,
    reconnect: bool,
    binary: bool,
    as_hex: bool,
    wait: float,
    verbose: bool,
) -> int:
    """Connect to URL (ws:// or wss://) and talk.

    On a terminal there is a prompt: each line is sent as TEXT, except commands, which begin with a slash; /help lists
    them. The history is kept in ~/.local/state/watershed-mw/history.

    In a pipe (unless both stdin and stdout are terminals), each line of stdin is sent as a TEXT message. Received TEXT
    goes to stdout with a newline, BINARY unchanged; everything else goes to stderr. After the end of stdin the
    connection is closed with 1000, once no message has arrived for --wait seconds.

    The exit status is 0 after a normal close (1000, 1001, 1005), 1 after any other or without a connection, 2 after a
    usage error.

    \b
    watershed-mw connect wss://example.org/chat --protocol chat.v1 --user ann
    echo hello | watershed-mw connect ws://127.0.0.1:8765/
    watershed-mw connect wss://example.org/news --wait inf < /dev/null | head -n 3
    watershed-mw connect ws://127.0.0.1:8765/ --binary < picture.png > copy.png
    """
    if binary and as_hex:
        raise click.UsageError("expected --binary or --hex, got both")
    options: dict[str, Any] = {
        "protocols": protocols,
        "headers": headers,
        "origin": origin,
        "auth": _credentials(user),
        "ssl": client_context(insecure, cacert),
        "proxy": _proxy(proxy),
        "unix": unix,
        "compression": not no_compression,
        "open_timeout": timeout,
        "max_message_size": max_size or None,
    }
    try:
        return asyncio.run(
            _talk(url, options, reconnect, verbose, "binary" if binary else "hex" if as_hex else "", wait)
        )
    except ModuleNotFoundError as error:
        raise Failure(f"expected the package {error.name}: pip install 'watershed-mw[cli]'") from error
    except ImportError as error:  # its text names the package to install
        raise Failure(str(error)) from error


async def _talk(url: str, options: dict[str, Any], reconnect: bool, verbose: bool, mode: str, wait: float) -> int:
    # Imported here because they are slow to import.
    from .dialogue import Dialogue, Order

    order = Order(url, options, reconnect, verbose)
    dialogue: Dialogue
    try:
        if os.isatty(0) and os.isatty(1) and not mode:
            from .terminal import Terminal

            dialogue = Terminal(order, Console())
        else:
            from .pipe import Mode, Pipe

            dialogue = Pipe(order, Console(stderr=True), Mode(mode), wait)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error
    return await dialogue.run()


def _credentials(user: str | None) -> tuple[str, str] | None:
    if user is None:
        return None
    name, colon, password = user.partition(":")
    if not colon:
        try:
            if os.name == "posix":
                os.close(
                    os.open("/dev/tty", os.O_RDWR)
                )  # getpass prompts there; it would fall back to stdin, which may be a pipe
            password = getpass.getpass(f"password of {name}: ")
        except OSError:
            raise click.UsageError(
                "expected --user NAME:PASSWORD where no terminal can prompt for the password"
            ) from None
    return name, password


def _proxy(proxy: str | None) -> str | bool:
    if proxy is None:
        return True
    return False if proxy.lower() == "none" else proxy
