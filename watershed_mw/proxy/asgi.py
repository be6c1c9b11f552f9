"""The proxy as an ASGI application: it relays raw bytes where the server hands over its socket, messages elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, cast
from urllib.parse import quote

from ..asgi.channels import Receive, Scope, Send
from ..asgi.middleware import WatershedASGI
from ..asgi.upgrade import ASGIUpgrade
from ..connection.aio.api import AsyncConnection
from ..core.handshake.negotiation import offered_subprotocols
from ..errors import ConnectionClosed, HandshakeError
from ..relay.api import Relay, relay
from ..relay.streams import can_relay
from .config import Config
from .headers import answer_fields, refusal_fields
from .messages import relay_messages
from .opening import Opening, open_upstream
from .request import request_of_scope
from .target import ProxyRequest
from .upstream import CUT_OFF, Refused, Switched, described, drop

__all__ = ["ASGIProxy"]

logger = logging.getLogger("watershed_mw.proxy")


class ASGIProxy:
    """Serves ASGI scopes.

    Args:
        config: the options.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._middleware = WatershedASGI(self._serve, **config.middleware_options)
        self._mode_logged = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] == "lifespan":
            await _serve_lifespan(receive, send)
        elif scope["type"] != "websocket":
            await _refuse_http(send)
        elif scope.get("watershed") is None:
            await self._middleware(scope, receive, send)
        else:
            # The application has its own middleware, which has checked the request.
            scope["watershed"].through(receive, send)
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        upgrade = cast(ASGIUpgrade, scope["watershed"])
        config = self._config
        try:
            place = config.connection_limit.enter()
        except HandshakeError as error:
            await upgrade.refuse(error)
            return
        try:
            request = request_of_scope(scope, upgrade.request.headers)
            await upgrade.take_connect()
            if config.mode != "messages" and upgrade.native and can_relay(asyncio.get_running_loop()):
                await self._relay_raw(upgrade, request)
            elif config.mode != "raw":
                await self._relay_messages(upgrade, request)
            else:
                raise HandshakeError(
                    f"the proxy needs raw sockets, which {upgrade.server.name} does not hand over on this event loop",
                    status=501,
                )
        except HandshakeError as error:
            if upgrade.accepted or upgrade.refused:
                raise
            logger.warning("%s not proxied: %s", quote(scope["path"]), described(error))
            await upgrade.refuse(error, log=False)
        finally:
            place.leave()

    async def _relay_raw(self, upgrade: ASGIUpgrade, request: ProxyRequest) -> None:
        config = self._config
        self._log_mode("raw bytes", upgrade)
        opening = await self._open(upgrade, request, upgrade.key)
        if isinstance(opening.answer, Refused):
            await _pass_refusal(upgrade, opening.answer)
            return
        fields, others = answer_fields(opening.answer.fields)
        # Detach before the client gets its 101: it must not get one if the upstream has disconnected.
        upstream = opening.answer.detach()
        code = config.middleware_options["shutdown_code"] or None
        relays: list[Relay] = []

        def begin(client: Any) -> Relay:
            try:
                relays.append(relay(client, upstream, shutdown_code=code, **config.limits))
            except BaseException:
                drop(client)
                raise
            return relays[0]

        try:
            await upgrade.hand_over(fields, others, begin)
        finally:
            if not relays:
                drop(upstream)
        shown = opening.destination.shown
        logger.info("%s relays to %s (raw bytes)", request.path, shown)
        try:
            ended = await relays[0]
        except asyncio.CancelledError:
            relays[0].abort()
            raise
        logger.info("%s relayed to %s: %s", request.path, shown, ended)

    async def _relay_messages(self, upgrade: ASGIUpgrade, request: ProxyRequest) -> None:
        config = self._config
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise HandshakeError("the proxy needs asyncio, which this server does not run", status=501) from None
        self._log_mode("messages", upgrade)
        key = config.client.generate_key()
        handshake = config.client.request_headers(key, offered_subprotocols(request.headers))
        opening = await self._open(upgrade, request, key, handshake)
        if isinstance(opening.answer, Refused):
            await _pass_refusal(upgrade, opening.answer)
            return
        upstream = self._connect(opening.answer, key, opening.handshake)
        try:
            others = answer_fields(opening.answer.fields)[1] if upgrade.server.accept_headers else []
            client = await upgrade.accept_as(upstream.protocol, others, **config.connection_options)
            shown = opening.destination.shown
            logger.info("%s relays to %s (messages)", request.path, shown)
            await relay_messages(client, upstream, **config.limits)
            logger.info("%s relayed to %s: %s", request.path, shown, upstream.stats)
        finally:
            upstream.start_close(code=1001)

    async def _open(
        self, upgrade: ASGIUpgrade, request: ProxyRequest, key: str, handshake: list[tuple[str, str]] | None = None
    ) -> Opening:
        chosen = self._config.choose(request)
        return await open_upstream(self._config, request, chosen, upgrade.wait_disconnected, key, handshake)

    def _connect(self, answer: Switched, key: str, handshake: list[tuple[str, str]]) -> AsyncConnection:
        try:
            response = (101, answer.fields)
            return self._config.client.connect(response, answer.streams, answer.head, key, request=handshake)
        except HandshakeError as error:
            answer.close()
            raise HandshakeError("the upstream does not answer with WebSocket", status=502) from error

    def _log_mode(self, mode: str, upgrade: ASGIUpgrade) -> None:
        if self._mode_logged:
            return
        self._mode_logged = True
        if mode == "messages" and self._config.mode == "auto" and upgrade.native:
            logger.warning("the proxy relays messages, as this event loop has no add_reader(), which raw bytes need")
        elif mode == "messages" and self._config.mode == "auto":
            logger.warning(
                "the proxy relays messages, as %s does not hand over its socket: for cheaper raw bytes, run uvicorn "
                "with --ws watershed_mw.uvicorn:WatershedProtocol",
                upgrade.server.name,
            )
        else:
            logger.info("the proxy relays %s", mode)


async def _pass_refusal(upgrade: ASGIUpgrade, refused: Refused) -> None:
    fields = refusal_fields(refused.fields)
    try:
        begin, rest = await refused.begin()
        if rest is None:
            await upgrade.reject(refused.status, begin, fields)
        else:
            await _stream_refusal(upgrade, refused, begin, rest, fields)
    finally:
        await refused.aclose()


async def _stream_refusal(
    upgrade: ASGIUpgrade, refused: Refused, begin: bytes, rest: AsyncIterator[bytes], fields: list[tuple[str, str]]
) -> None:
    """Stream a long body while both sides keep pace.

    Raises:
        ConnectionClosed: a side was too slow, or the body ended early; the client's connection has been reset.
    """
    try:
        async with asyncio.timeout(refused.pace.remaining) as limit:

            async def chained() -> AsyncIterator[bytes]:
                yield begin
                async for part in rest:
                    limit.reschedule(asyncio.get_running_loop().time() + refused.pace.remaining)
                    yield part
                if not refused.complete:
                    raise TimeoutError

            await upgrade.reject(refused.status, chained(), fields)
    except TimeoutError:
        logger.warning(CUT_OFF)
        # A reset, as the client could mistake an orderly close for the end of the body.
        upgrade.abort()
        raise ConnectionClosed(1006, "the upstream's refusal was cut off") from None


async def _refuse_http(send: Send) -> None:
    body = b"expected a WebSocket upgrade, got a plain HTTP request\n"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"upgrade", b"websocket"),
    ]
    await send({"type": "http.response.start", "status": 426, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
