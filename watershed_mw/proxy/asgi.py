"""The proxy as an ASGI application: raw where the server gives its socket, by messages everywhere else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from typing import Any, cast
from urllib.parse import quote

from ..asgi.middleware import WatershedASGI
from ..asgi.upgrade import ASGIUpgrade, Receive, Scope, Send
from ..connection.aio.api import AsyncConnection
from ..core.handshake.extensions import with_plain_offer
from ..core.handshake.negotiation import offered_subprotocols
from ..errors import ConnectionClosed, HandshakeError
from ..relay.engine import Relay, can_relay, relay
from .config import Plan, request_of_scope
from .disconnect import cancel_on_disconnect
from .headers import answer_fields, refusal_fields
from .messages import relay_messages
from .target import Destination, ProxyRequest
from .upstream import Refused, Switched, described, drop

__all__ = ["ASGIProxy"]

logger = logging.getLogger("watershed_mw.proxy")

_UPGRADE = [("Upgrade", "websocket"), ("Connection", "Upgrade")]


class ASGIProxy:
    """Serves ASGI scopes.

    Args:
        plan: the options.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._alone = WatershedASGI(self._serve, **plan.options)
        self._told_mode = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] != "websocket":
            await _refuse_http(send)
        elif scope.get("watershed") is None:
            await self._alone(scope, receive, send)
        else:
            # A middleware of the application's is around: it has judged the request.
            scope["watershed"].through(receive, send)
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        upgrade = cast(ASGIUpgrade, scope["watershed"])
        plan = self._plan
        try:
            place = plan.connection_limit.enter()
        except HandshakeError as error:
            await upgrade.refuse(error)
            return
        try:
            request = request_of_scope(scope, upgrade.request.headers)
            await upgrade.take_connect()
            if plan.mode != "messages" and upgrade.native and can_relay(asyncio.get_running_loop()):
                await self._relay_raw(upgrade, request)
            elif plan.mode != "raw":
                await self._relay_messages(upgrade, request)
            else:
                raise HandshakeError(
                    f"the proxy needs raw sockets, which {upgrade.server.name} does not give on this event loop",
                    status=501,
                )
        except HandshakeError as error:
            if upgrade.accepted or upgrade.refused:
                raise
            logger.warning("%s not proxied: %s", quote(scope["path"]), described(error))
            await upgrade.refuse(error, log=False)
        finally:
            place.leave()

    async def _destination(self, request: ProxyRequest) -> Destination:
        chosen = self._plan.chosen(request)
        return self._plan.destination(await chosen if isinstance(chosen, Awaitable) else chosen, request)

    async def _relay_raw(self, upgrade: ASGIUpgrade, request: ProxyRequest) -> None:
        plan = self._plan
        self._log_mode("raw bytes", upgrade)
        async with cancel_on_disconnect(upgrade.wait_disconnected):
            to = await self._destination(request)
            answer = await plan.ask(to, request, upgrade.key, _UPGRADE, raw=True)
        if isinstance(answer, Refused):
            await _pass_refusal(upgrade, answer)
            return
        fields, others = answer_fields(answer.fields)
        upstream = answer.detach()  # before the 101: an upstream that has gone meanwhile gets the client none
        code = plan.options["shutdown_code"] or None
        relays: list[Relay] = []

        def begin(client: Any) -> Relay:
            try:
                relays.append(relay(client, upstream, shutdown_code=code, **plan.limits))
            except BaseException:
                drop(client)
                raise
            return relays[0]

        try:
            await upgrade.hand_over(fields, others, begin)
        finally:
            if not relays:
                drop(upstream)
        logger.info("%s relays to %s (raw bytes)", request.path, to.shown)
        try:
            ended = await relays[0]
        except asyncio.CancelledError:
            relays[0].abort()
            raise
        logger.info("%s relayed to %s: %s", request.path, to.shown, ended)

    async def _relay_messages(self, upgrade: ASGIUpgrade, request: ProxyRequest) -> None:
        plan = self._plan
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise HandshakeError("the proxy needs asyncio, and this server runs something else", status=501) from None
        self._log_mode("messages", upgrade)
        key = plan.shed.generate_key()
        offered = offered_subprotocols(request.headers)
        handshake = plan.shed.request_headers(key, offered)
        async with cancel_on_disconnect(upgrade.wait_disconnected):
            to = await self._destination(request)
            answer = await plan.ask(to, request, key, handshake, raw=False)
            if isinstance(answer, Refused) and answer.status == 400 and (plain := with_plain_offer(handshake)):
                # The offer is the proxy's own: the client is not to pay for an upstream that refuses its parameters.
                await answer.aclose()
                handshake = plain
                answer = await plan.ask(to, request, key, handshake, raw=False)
        if isinstance(answer, Refused):
            await _pass_refusal(upgrade, answer)
            return
        upstream = await self._connect(answer, key, handshake)
        try:
            others = answer_fields(answer.fields)[1] if upgrade.server.accept_headers else []
            client = await upgrade.accept_as(upstream.protocol, others, **plan.both)
            logger.info("%s relays to %s (messages)", request.path, to.shown)
            await relay_messages(client, upstream, **plan.limits)
            logger.info("%s relayed to %s: %s", request.path, to.shown, upstream.stats)
        finally:
            upstream.start_close(code=1001)

    async def _connect(self, answer: Switched, key: str, handshake: list[tuple[str, str]]) -> AsyncConnection:
        try:
            response = (101, answer.fields)
            return self._plan.shed.connect(response, answer.streams, answer.head, key, request=handshake)
        except HandshakeError as error:
            answer.close()
            raise HandshakeError("the upstream does not answer with WebSocket", status=502) from error

    def _log_mode(self, mode: str, upgrade: ASGIUpgrade) -> None:
        if self._told_mode:
            return
        self._told_mode = True
        if mode == "messages" and self._plan.mode == "auto" and upgrade.native:
            logger.warning("the proxy relays messages, as this event loop cannot wait for raw sockets (add_reader)")
        elif mode == "messages" and self._plan.mode == "auto":
            logger.warning(
                "the proxy relays messages, as %s has no raw socket to give: uvicorn with --ws "
                "watershed_mw.uvicorn:WatershedProtocol relays bytes, for a fraction of the work",
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
    """Pass a long body on as it comes, for as long as both sides make progress.

    Raises:
        ConnectionClosed: one of them does not, or the upstream has broken off; the client has been cut off.
    """
    try:
        async with asyncio.timeout(refused.pace.left) as limit:

            async def chained() -> AsyncIterator[bytes]:
                yield begin
                async for part in rest:
                    limit.reschedule(asyncio.get_running_loop().time() + refused.pace.left)
                    yield part
                if not refused.complete:
                    raise TimeoutError

            await upgrade.reject(refused.status, chained(), fields)
    except TimeoutError:
        logger.warning("a refusal of the upstream's was cut off: it broke off, or a side did not keep up")
        # Not an end like any other, which a client would take for the end of the body.
        upgrade.abort()
        raise ConnectionClosed(1006, "the answer was cut off") from None


async def _refuse_http(send: Send) -> None:
    body = b"expected a WebSocket upgrade, got a plain HTTP request\n"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"upgrade", b"websocket"),
    ]
    await send({"type": "http.response.start", "status": 426, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
