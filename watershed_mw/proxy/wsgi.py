"""The proxy as a WSGI application: the request's thread sees the opening handshake through, and is free.

Upstreams are asked on the process's event loop, where the bytes are relayed as well.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable, Iterator
from functools import partial
from http import HTTPStatus
from typing import cast

from ..drain import watch_process
from ..errors import HandshakeError
from ..loop_thread import run_on_background_loop
from ..relay import Relay, relay
from ..transports import way_of
from ..wsgi import Environ, Rejection, StartResponse, WatershedWSGI, WSGIUpgrade, asks_for_upgrade
from .forwarding import answer_fields, refusal_fields
from .settings import Plan, request_of_environ
from .target import UpstreamLike
from .upstream import Refused, Switched

__all__ = ["WSGIProxy"]

logger = logging.getLogger("watershed_mw.proxy")

_UPGRADE = [("Upgrade", "websocket"), ("Connection", "Upgrade")]


class WSGIProxy:
    """Serves WSGI requests.

    Args:
        plan: the options.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._alone = WatershedWSGI(self._serve, **plan.options)
        code = self._alone.shed.settings.shutdown_code
        self._shutdown_code = 1001 if code == 0 else code
        self._told_mode = False

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
        entered = False
        try:
            request, key = upgrade.check()
            plan.room.enter()
            entered = True
            forwarded = request_of_environ(environ, request.headers)
            # In this thread, which may wait, and has whatever the framework keeps for the request.
            chosen = plan.chosen(forwarded)
            if isinstance(chosen, Awaitable):
                chosen = run_on_background_loop(_awaited(chosen))
            to = plan.destination(chosen, forwarded)
            answer = run_on_background_loop(plan.ask(to, forwarded, key, _UPGRADE, raw=True))
            if isinstance(answer, Refused):
                return _refusal(answer, start_response)
            relayed = self._relay(upgrade, answer, f"{forwarded.path} relayed to {to.shown}")
            logger.info("%s relays to %s (raw bytes)", forwarded.path, to.shown)
        except HandshakeError as error:
            if error.status >= 500:
                logger.warning("%s not proxied: %s (%s)", environ.get("PATH_INFO"), error, error.__cause__ or "")
            return Rejection.of(error)(environ, start_response)
        finally:
            if entered and relayed is None:
                plan.room.leave()
        # To frameworks this is an answer like any other.
        start_response("101 Switching Protocols", [])
        return ()

    def _relay(self, upgrade: WSGIUpgrade, answer: Switched, what: str) -> Relay:
        plan = self._plan
        if not self._told_mode:
            self._told_mode = True
            logger.info("the proxy relays raw bytes")
        fields, others = answer_fields(answer.fields)
        server = upgrade.server
        try:
            sock = upgrade.hand_over(fields, others)
        except BaseException:
            run_on_background_loop(_close(answer))
            raise

        async def begin() -> Relay:
            upstream = way_of(answer.streams).detach(answer.head)
            return relay(sock, upstream, shutdown_code=self._shutdown_code, **plan.limits)

        try:
            relayed = run_on_background_loop(begin())
        except BaseException:
            sock.close()
            raise
        relayed.when_gone(partial(self._ended, what, relayed))
        if self._shutdown_code is not None:
            watch_process(server.stopping)
        if server.no_background(upgrade.environ):
            relayed.wait()  # the process ends with the request
        return relayed

    def _ended(self, what: str, relayed: Relay) -> None:
        self._plan.room.leave()
        logger.info("%s: %s", what, relayed.result)


async def _awaited(chosen: Awaitable[UpstreamLike | None]) -> UpstreamLike | None:
    return await chosen


async def _close(answer: Switched) -> None:
    answer.close()


def _refusal(refused: Refused, start_response: StartResponse) -> Iterable[bytes]:
    try:
        phrase = HTTPStatus(refused.status).phrase
    except ValueError:
        phrase = "Unknown"
    # Whether the body ends with its length, its last chunk or the stream is between the server and its client.
    start_response(f"{refused.status} {phrase}", refusal_fields(refused.fields))
    return _Body(refused)


class _Body:
    """The body of an upstream's refusal, as it comes."""

    def __init__(self, refused: Refused) -> None:
        self._refused = refused
        self._parts = refused.body()

    def __iter__(self) -> Iterator[bytes]:
        while part := run_on_background_loop(self._next()):
            yield part

    async def _next(self) -> bytes:
        async for part in self._parts:
            if part:
                return part
        return b""

    def close(self) -> None:
        """The server is done with it."""
        run_on_background_loop(self._refused.aclose())
