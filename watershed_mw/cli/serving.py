"""Serves an ASGI application under uvicorn with ``WatershedProtocol``, for ``echo`` and ``proxy``.

The listening sockets are opened here, so that the address is known, and printed once uvicorn listens.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from ..asgi.channels import App
from .heads import bounded
from .output import Failure
from .parameters import Address, as_address

__all__ = ["serve", "serving_options"]

F = TypeVar("F", bound=Callable[..., Any])


def serving_options(default: str | None) -> Callable[[F], F]:
    """The options of a command that serves; without a default, ``--listen`` is required."""
    # Since click 8.3, default=None counts as a default, and a missing option is not reported.
    given: dict[str, Any] = {"required": True} if default is None else {"default": default, "show_default": True}

    def decorate(command: F) -> F:
        file = click.Path(exists=True, dir_okay=False, path_type=Path)
        for option in (
            click.option("-v", "--verbose", is_flag=True, help="Log to stderr."),
            click.option(
                "--tls-key", type=file, metavar="FILE", help="The private key, if it is not in the same file."
            ),
            click.option("--tls-cert", type=file, metavar="FILE", help="Serve wss:// with this PEM certificate."),
            click.option(
                "--listen",
                callback=as_address,
                **given,
                metavar="[HOST]:PORT",
                help="Address to listen on; without a host all addresses, port 0 for any free port.",
            ),
        ):
            command = option(command)
        return command

    return decorate


def serve(app: App, listen: Address, tls_cert: Path | None, tls_key: Path | None, verbose: bool) -> None:
    """Serve until SIGINT or SIGTERM, which close all connections with 1012.

    Raises:
        Failure: uvicorn is not installed, or the address cannot be listened on.
        click.UsageError: the certificate or the key is invalid.
    """
    try:
        import uvicorn
        from uvicorn.protocols.http.auto import AutoHTTPProtocol

        from ..uvicorn.protocol import WatershedProtocol
    except ModuleNotFoundError as error:
        raise Failure(f"expected the package {error.name}: pip install 'watershed-mw[cli,uvicorn]'") from error

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for line in dict.fromkeys(_shown(one, tls=tls_cert is not None) for one in sockets or ()):
                click.echo(line)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn's own version re-raises the signal after the shutdown, which would kill the program.
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    if tls_key is not None and tls_cert is None:
        raise click.UsageError("expected --tls-cert with --tls-key")
    config = uvicorn.Config(
        app,
        http=bounded(AutoHTTPProtocol),
        ws=WatershedProtocol,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        lifespan="off",
        access_log=False,
        log_level=logging.INFO if verbose else logging.WARNING,
        server_header=False,
    )
    try:
        config.load()
    except OSError as error:  # includes ssl.SSLError
        raise click.UsageError(f"expected a certificate and its key in PEM form: {error}") from error
    try:
        sockets = listen.listen()
    except OSError as error:
        # create_server adds the address to strerror.
        why = os.strerror(error.errno) if error.errno and not isinstance(error, socket.gaierror) else error.strerror
        raise Failure(f"cannot listen on {listen.host or '*'}:{listen.port}: {why}") from error
    except UnicodeError as error:
        raise Failure(f"cannot listen on {listen.host}: not a valid host name") from error
    Server(config).run(sockets)


def _shown(listener: socket.socket, *, tls: bool) -> str:
    host, port = listener.getsockname()[:2]
    everywhere = host in ("0.0.0.0", "::")
    if everywhere:
        host = "127.0.0.1"
    url = f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}/"
    return f"{url} and every other address of this machine" if everywhere else url
