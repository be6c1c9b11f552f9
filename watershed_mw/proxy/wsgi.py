"""The proxy as a WSGI application: the request's thread sees the opening handshake through, and is free.

Upstreams are asked on the process's event loop, where the bytes are relayed as well.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from urllib.parse import quote

from ..connection.limit import Place
from ..errors import ConnectionClosed, HandshakeError
from ..http.write import status_line
from ..options import Options
from ..relay.engine import Relay, can_relay, relay
from ..runtime.exhaustion import is_exhausted, unavailable
from ..runtime.loop_thread import LoopFailedError, background_loop, run_on_background_loop
from ..wsgi.middleware import WatershedWSGI, asks_for_upgrade
from ..wsgi.responses import Environ, Rejection, StartResponse
from ..wsgi.shutdown import catch_signals, watch_process
from ..wsgi.upgrade import WSGIUpgrade
from .config import Plan, request_of_environ
from .disconnect import cancel_on_disconnect, left
from .headers import answer_fields, refusal_fields
from .target import Destination, ProxyRequest
from .upstream import Raw, Refused, described, drop

__all__ = ["WSGIProxy"]

logger = logging.getLogger("watershed_mw.proxy")

_UPGRADE = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
# As nginx logs it; no client sees it.
_CLIENT_GONE = 499


class WSGIProxy:
    """Serves WSGI requests.

    Args:
        plan: the options.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        code = plan.options["shutdown_code"]
        self._shutdown_code = 1001 if code == 0 else code
        self._told_mode = False
        # Not by the middleware, whose threads' connections need more than a relay does: this may be an ASGI process.
        options: Options = {**plan.options, "shutdown_code": None}
        self._alone = WatershedWSGI(self._serve, **options)
        if self._shutdown_code is not None:
            catch_signals(interrupt=False)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if not asks_for_upgrade(environ):
            error = HandshakeError("expected a WebSocket upgrade, got a plain HTTP request", status=426)
            return Rejection.of(error)(environ, start_response)
        if environ.get("watershed") is None:
            return self._alone(environ, start_response)
        return self._serve(environ, start_response)

    def _serve(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        upgrade = cast(WSGIUpgrade, environ["watershed"])
        plan = self._plan
        relayed: Relay | None = None
        place: Place | None = None
        try:
            request, key = upgrade.check()
            if not can_relay(background_loop()[0]):
                raise HandshakeError(
                    "the proxy needs an event loop with add_reader(), which the one of this platform has not: "
                    "run the proxy as an ASGI application here",
                    status=501,
                )
            place = plan.connection_limit.enter()
            forwarded = request_of_environ(environ, request.headers, upgrade.target)
            # In this thread, which may wait, and has whatever the framework keeps for the request.
            chosen = plan.chosen(forwarded)
            to, answer = self._ask(upgrade, forwarded, key, chosen)
            if isinstance(answer, Refusal):
                return answer.pass_on(upgrade, start_response)
            relayed = self._relay(upgrade, place, *answer, forwarded.path, to.shown)
        except ConnectionClosed as error:
            if not upgrade.accepted:
                gone = HandshakeError(f"nobody is there to be answered: {error}", status=_CLIENT_GONE)
                return Rejection.of(gone)(environ, start_response)
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
        # To frameworks this is an answer like any other.
        start_response("101 Switching Protocols", [])
        return ()

    def _ask(
        self, upgrade: WSGIUpgrade, request: ProxyRequest, key: str, chosen: Any
    ) -> tuple[Destination, Refusal | tuple[list[tuple[str, str]], Raw]]:
        """Where the request goes, and the answer from there: a refusal, or header fields and the raw stream."""
        plan = self._plan
        descriptor = upgrade.client_descriptor()

        async def ask() -> tuple[Destination, Refusal | tuple[list[tuple[str, str]], Raw]]:
            async with cancel_on_disconnect(partial(left, descriptor)):
                to = plan.destination(await chosen if isinstance(chosen, Awaitable) else chosen, request)
                answer = await plan.ask(to, request, key, _UPGRADE, raw=True)
                if isinstance(answer, Refused):
                    return to, Refusal(answer, *await answer.begin())
            # Before the 101: an upstream that has gone meanwhile gets the client none.
            return to, (answer.fields, answer.detach())

        try:
            return run_on_background_loop(ask())
        finally:
            if descriptor >= 0:
                socket.close(descriptor)

    def _relay(
        self, upgrade: WSGIUpgrade, place: Place, answered: list[tuple[str, str]], upstream: Raw, path: str, where: str
    ) -> Relay:
        plan = self._plan
        if not self._told_mode:
            self._told_mode = True
            logger.info("the proxy relays raw bytes")
        fields, others = answer_fields(answered)
        server = upgrade.server
        sock: socket.socket | None = None

        async def begin(client: socket.socket) -> Relay:
            return relay(client, upstream, shutdown_code=self._shutdown_code, **plan.limits)

        try:
            if self._shutdown_code is not None:
                watch_process(server.stopping)  # first: the process may stop as soon as there is something to end
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
    """The upstream's refusal, whose body has been read as far as it is passed on in one piece.

    Attributes:
        refused: the refusal.
        begin: the body, or its beginning.
        rest: what follows; None for nothing.
    """

    refused: Refused
    begin: bytes
    rest: AsyncIterator[bytes] | None

    def pass_on(self, upgrade: WSGIUpgrade, start_response: StartResponse) -> Iterable[bytes]:
        """Answer with it."""
        # Whether the body ends with its length, its last chunk or the stream is between the server and its client.
        start_response(status_line(self.refused.status), refusal_fields(self.refused.fields))
        if self.rest is None:
            return [self.begin] if self.begin else []
        return _Body(self.refused, self.begin, self.rest, upgrade.client_descriptor())


class _Body:
    """The body of a long refusal, as it comes.

    The server's thread writes it, for as long as that takes: where a side does not keep up, the client's connection is
    shut down under it, and the thread is free.

    Args:
        refused: the refusal.
        begin: the beginning of its body.
        rest: what follows.
        descriptor: the client's socket, which is closed in the end; -1 where it cannot be had.
    """

    def __init__(self, refused: Refused, begin: bytes, rest: AsyncIterator[bytes], descriptor: int) -> None:
        self._refused = refused
        self._begin = begin
        self._parts = rest
        # The C module's, also where gevent or eventlet has another one: it is the event loop's thread that uses it.
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
        """Look again when the time of what has passed so far is over."""
        self._forget()
        left = self._refused.pace.left
        if self._client is None:
            return
        if left:
            self._timer = asyncio.get_running_loop().call_later(left, self._watch)
        else:
            self._cut_off()

    def _cut_off(self) -> None:
        if self._client is None:
            return
        logger.warning("a refusal of the upstream's was cut off: it broke off, or a side did not keep up")
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)
        self._release()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _release(self) -> None:
        self._forget()
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def close(self) -> None:
        """The server is done with it."""
        run_on_background_loop(self._end())

    async def _end(self) -> None:
        self._release()
        await self._refused.aclose()
