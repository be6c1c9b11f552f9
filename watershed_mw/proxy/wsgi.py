"""The proxy as a WSGI application: it relays raw bytes, without a thread once the opening handshake is done.

A background event loop opens the upstream connection and relays the bytes; the request's thread only waits for the
opening handshake.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from urllib.parse import quote

from ..connection.limit import Place
from ..errors import ConnectionClosed, HandshakeError
from ..http.write import status_line
from ..relay.api import Relay, relay
from ..relay.streams import can_relay
from ..runtime.exhaustion import is_exhausted, unavailable
from ..runtime.loop_thread import LoopFailedError, background_loop, run_on_background_loop
from ..wsgi.middleware import WatershedWSGI, asks_for_upgrade
from ..wsgi.responses import Environ, Rejection, StartResponse
from ..wsgi.shutdown import watch_process
from ..wsgi.upgrade import WSGIUpgrade
from .config import Config
from .disconnect import cancel_on_disconnect, wait_disconnected
from .headers import answer_fields, refusal_fields
from .opening import open_upstream
from .request import request_of_environ
from .target import Destination, ProxyRequest
from .upstream import CUT_OFF, Raw, Refused, described, drop

__all__ = ["WSGIProxy"]

logger = logging.getLogger("watershed_mw.proxy")

# The status that nginx logs; no client sees it.
_CLIENT_GONE = 499


class WSGIProxy:
    """Serves WSGI requests.

    Args:
        config: the options.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        code = config.middleware_options["shutdown_code"]
        self._shutdown_code = 1001 if code == 0 else code
        self._mode_logged = False
        self._middleware = WatershedWSGI(self._serve, **config.middleware_options)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if not asks_for_upgrade(environ):
            error = HandshakeError("expected a WebSocket upgrade, got a plain HTTP request", status=426)
            return Rejection.of(error)(environ, start_response)
        if environ.get("watershed") is None:
            return self._middleware(environ, start_response)
        return self._serve(environ, start_response)

    def _serve(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        upgrade = cast(WSGIUpgrade, environ["watershed"])
        config = self._config
        relayed: Relay | None = None
        place: Place | None = None
        try:
            request, key = upgrade.check()
            if not can_relay(background_loop()[0]):
                raise HandshakeError(
                    "the proxy needs an event loop with add_reader(), which this platform's lacks: run the proxy as an "
                    "ASGI application",
                    status=501,
                )
            place = config.connection_limit.enter()
            forwarded = request_of_environ(environ, request.headers, upgrade.target)
            # In this thread: the callable may block, and needs the framework's request context.
            chosen = config.choose(forwarded)
            to, answer = self._open(upgrade, forwarded, key, chosen)
            if isinstance(answer, Refusal):
                return answer.pass_on(upgrade, start_response)
            relayed = self._relay(upgrade, place, *answer, forwarded.path, to.shown)
        except ConnectionClosed as error:
            if not upgrade.accepted:
                unread = HandshakeError(f"no client to answer: {error}", status=_CLIENT_GONE)
                return Rejection.of(unread)(environ, start_response)
        except HandshakeError as error:
            path = quote(str(environ.get("PATH_INFO", "")).encode("latin-1"))
            logger.warning("%s not proxied: %s", path, described(error))
            return Rejection.of(error)(environ, start_response)
        except (OSError, RuntimeError, MemoryError) as error:
            if upgrade.accepted or not (is_exhausted(error) or isinstance(error, LoopFailedError)):
                raise
            refusal = unavailable(error)
            logger.warning("%s not proxied: %s", quote(str(environ.get("PATH_INFO", "")).encode("latin-1")), refusal)
            return Rejection.of(refusal)(environ, start_response)
        finally:
            if place is not None and relayed is None:
                place.leave()
        # Frameworks expect a response.
        start_response("101 Switching Protocols", [])
        return ()

    def _open(
        self, upgrade: WSGIUpgrade, request: ProxyRequest, key: str, chosen: Any
    ) -> tuple[Destination, Refusal | tuple[list[tuple[str, str]], Raw]]:
        """Open the upstream: the destination, and its refusal or the header fields of its 101 and the raw stream."""
        descriptor = upgrade.client_descriptor()

        async def open_detached() -> tuple[Destination, Refusal | tuple[list[tuple[str, str]], Raw]]:
            disconnected = partial(wait_disconnected, descriptor)
            opening = await open_upstream(self._config, request, chosen, disconnected, key)
            to, answer = opening.destination, opening.answer
            if isinstance(answer, Refused):
                async with cancel_on_disconnect(disconnected):
                    return to, Refusal(answer, *await answer.begin())
            # Detach before the client gets its 101: it must not get one if the upstream has disconnected.
            return to, (answer.fields, answer.detach())

        try:
            return run_on_background_loop(open_detached())
        finally:
            if descriptor >= 0:
                socket.close(descriptor)

    def _relay(
        self, upgrade: WSGIUpgrade, place: Place, answered: list[tuple[str, str]], upstream: Raw, path: str, where: str
    ) -> Relay:
        if not self._mode_logged:
            self._mode_logged = True
            logger.info("the proxy relays raw bytes")
        fields, others = answer_fields(answered)
        server = upgrade.server
        sock: socket.socket | None = None

        async def begin(client: socket.socket) -> Relay:
            return relay(client, upstream, shutdown_code=self._shutdown_code, **self._config.limits)

        try:
            if self._shutdown_code is not None:
                # Before the relay starts, as the process must close it when it stops.
                handle_signals = self._config.middleware_options["install_signal_handlers"]
                watch_process(server, handle_signals=handle_signals)
            sock = upgrade.hand_over(fields, others)
            relayed = run_on_background_loop(begin(sock))
        except BaseException:
            if sock is not None:
                sock.close()
            run_on_background_loop(_drop(upstream))
            raise
        logger.info("%s relays to %s (raw bytes)", path, where)
        relayed.when_gone(partial(self._ended, f"{path} relayed to {where}", relayed, place))
        if server.no_background(upgrade.environ):
            relayed.wait()  # the process ends with the request
        return relayed

    def _ended(self, what: str, relayed: Relay, place: Place) -> None:
        place.leave()
        logger.info("%s: %s", what, relayed.result)


async def _drop(upstream: Raw) -> None:
    drop(upstream)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The upstream's refusal, with the beginning of its body.

    Attributes:
        refused: the refusal.
        begin: the body, or the beginning of a long one.
        rest: the rest of a long body; None for a short one.
    """

    refused: Refused
    begin: bytes
    rest: AsyncIterator[bytes] | None

    def pass_on(self, upgrade: WSGIUpgrade, start_response: StartResponse) -> Iterable[bytes]:
        """Forward the refusal to the client."""
        # The server delimits the body for its client: by length, by chunks, or by the end of the stream.
        start_response(status_line(self.refused.status), refusal_fields(self.refused.fields))
        if self.rest is None:
            return [self.begin] if self.begin else []
        return _Body(self.refused, self.begin, self.rest, upgrade.client_descriptor())


class _Body:
    """The body of a long refusal, streamed.

    The server's thread writes it and may block. If a side is too slow, the client's connection is shut down, which
    unblocks the thread.

    Args:
        refused: the refusal.
        begin: the beginning of its body.
        rest: the rest.
        descriptor: a descriptor of the client's socket, owned by this object; -1 where there is none.
    """

    def __init__(self, refused: Refused, begin: bytes, rest: AsyncIterator[bytes], descriptor: int) -> None:
        self._refused = refused
        self._begin = begin
        self._parts = rest
        # The C module's class, even if gevent or eventlet patches socket.socket: the event loop's thread uses it.
        self._client = _socket.socket(fileno=descriptor) if descriptor >= 0 else None
        self._timer: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[bytes]:
        run_on_background_loop(self._start())
        yield self._begin
        while part := run_on_background_loop(self._next()):
            yield part

    async def _start(self) -> None:
        self._watch()

    async def _next(self) -> bytes:
        async for part in self._parts:
            if part:
                return part
        if not self._refused.complete:
            self._cut_off()
        return b""

    def _watch(self) -> None:
        """Cut the body off if its time is up; otherwise schedule the next check."""
        self._cancel_timer()
        remaining = self._refused.pace.remaining
        if self._client is None:
            return
        if remaining:
            self._timer = asyncio.get_running_loop().call_later(remaining, self._watch)
        else:
            self._cut_off()

    def _cut_off(self) -> None:
        if self._client is None:
            return
        logger.warning(CUT_OFF)
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)
        self._release()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _release(self) -> None:
        self._cancel_timer()
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def close(self) -> None:
        """Release the upstream and the client's descriptor; called by the server (PEP 3333)."""
        run_on_background_loop(self._end())

    async def _end(self) -> None:
        self._release()
        await self._refused.aclose()
