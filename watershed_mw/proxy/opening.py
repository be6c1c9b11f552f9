"""The opening handshake with the upstream, for ASGI and WSGI alike: find the destination, request the upgrade."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

import httpx

from ..core.handshake.extensions import with_plain_offer
from ..core.handshake.headers import check_outgoing, shown
from ..errors import HandshakeError
from .config import Config
from .disconnect import cancel_on_disconnect
from .headers import request_fields
from .target import Destination, ProxyRequest, UpstreamLike, destination
from .upstream import Refused, Switched, ask

__all__ = ["Opening", "open_upstream"]

_UPGRADE: Final = (("Upgrade", "websocket"), ("Connection", "Upgrade"))


@dataclass(frozen=True, slots=True)
class Opening:
    """The upstream's answer to one request.

    Attributes:
        destination: the upstream, and the request target there.
        answer: the upgrade, or the refusal.
        handshake: the header fields that asked for the upgrade; those of the second attempt where there were two.
    """

    destination: Destination
    answer: Switched | Refused
    handshake: list[tuple[str, str]]


async def open_upstream(
    config: Config,
    request: ProxyRequest,
    chosen: UpstreamLike | Awaitable[UpstreamLike | None] | None,
    disconnected: Callable[[], Awaitable[None]],
    key: str,
    own_handshake: list[tuple[str, str]] | None = None,
) -> Opening:
    """Find the destination of a request and request the upgrade there, unless the client disconnects first.

    Args:
        config: the proxy's options.
        request: the client's request.
        chosen: what :meth:`Config.choose` returned for this request.
        disconnected: waits until the client disconnects; cancelled when the upstream has answered.
        key: the Sec-WebSocket-Key that the upstream gets.
        own_handshake: the proxy's own opening handshake, which replaces the client's Sec-WebSocket fields; None to
            forward those. After a 400 the proxy retries, with a compression offer without parameters.

    Raises:
        ConnectionClosed: the client has disconnected.
        HandshakeError: no destination (404), a path that may leave its prefix (400), no usable answer (502, 504), or a
            header field that cannot be written (500).
    """
    async with cancel_on_disconnect(disconnected):
        to = destination(await chosen if isinstance(chosen, Awaitable) else chosen, request, config.strip_prefix)
        fields = _request_fields(config, to, request)
        if own_handshake is None:
            handshake = list(_UPGRADE)
            return Opening(to, await _ask(config, to, fields + handshake, key), handshake)
        fields = [pair for pair in fields if not pair[0].lower().startswith("sec-websocket-")]
        handshake = own_handshake
        answer = await _ask(config, to, fields + handshake, key)
        if isinstance(answer, Refused) and answer.status == 400 and (plain := with_plain_offer(handshake)):
            # The client did not make this offer, so it must not be refused for it.
            await answer.aclose()
            handshake = plain
            answer = await _ask(config, to, fields + handshake, key)
        return Opening(to, answer, handshake)


def _request_fields(config: Config, to: Destination, request: ProxyRequest) -> list[tuple[str, str]]:
    extra = httpx.Headers(config.headers)
    extra.update(to.headers)
    host = to.url.netloc.decode("ascii")
    return request_fields(request, host, to.prefix, keep_host=config.keep_host, drop=config.drop_headers, extra=extra)


async def _ask(config: Config, to: Destination, fields: list[tuple[str, str]], key: str) -> Switched | Refused:
    _check_fields(fields)
    return await ask(to, fields, key, context=config.ssl, open_timeout=config.open_timeout)


def _check_fields(fields: Iterable[tuple[str, str]]) -> None:
    for name, value in fields:
        try:
            check_outgoing([(name, value)])
            written = value == value.strip(" \t")
        except ValueError:
            written = False
        if not written:
            # Neither the client nor the log gets the value: it may be a secret of the application.
            raise HandshakeError(f"the proxy cannot write the header field {shown(name)}", status=500)
