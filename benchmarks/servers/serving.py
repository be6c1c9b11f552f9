"""The command line and the event loop of the servers that are standalone programs."""

from __future__ import annotations

import argparse
import asyncio
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

# The longest message in bytes, as in uvicorn.
MAX_SIZE = 16 * 2**20
# Connections waiting to be accepted: as many as the load generator opens at once.
BACKLOG = 4096


@dataclass(frozen=True)
class Place:
    """A server's command line options."""

    port: int
    deflate: bool
    tls: ssl.SSLContext | None


def serve(server: Callable[[Place], Coroutine[None, None, None]]) -> None:
    """Run a server with the options of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--deflate", action="store_true")
    parser.add_argument("--certificate", help="PEM file: certificates")
    parser.add_argument("--key", help="PEM file: the private key")
    options = parser.parse_args()
    tls = None
    if options.certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.certificate, options.key)
    place = Place(options.port, options.deflate, tls)
    if options.loop == "uvloop":
        import uvloop

        uvloop.run(server(place))
    else:
        asyncio.run(server(place))
