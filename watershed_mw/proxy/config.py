"""The options of a proxy, checked."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import httpx

from ..connection.limit import ConnectionLimit
from ..options import ConnectionOptions, Options
from ..watershed import Watershed
from .target import Choice, ProxyRequest, UpstreamLike

__all__ = ["Config", "Mode"]

Mode: TypeAlias = Literal["auto", "raw", "messages"]


@dataclass(frozen=True, slots=True)
class Config:
    """The options of a :class:`~watershed_mw.proxy.WebSocketProxy`, checked."""

    upstream: UpstreamLike | Choice
    keep_host: bool
    strip_prefix: bool | str
    headers: httpx.Headers
    drop_headers: frozenset[str]
    ssl: ssl.SSLContext | None
    mode: Mode
    open_timeout: float
    close_timeout: float
    idle_timeout: float | None
    max_duration: float | None
    max_bytes: int | None
    middleware_options: Options
    """For the middleware that checks requests where the application has none."""
    connection_options: ConnectionOptions
    """For both connections where messages are relayed."""
    client: Watershed
    """For the upstream connection where messages are relayed."""
    connection_limit: ConnectionLimit

    @property
    def limits(self) -> dict[str, Any]:
        """The limits of a relay, by name."""
        return {
            "idle_timeout": self.idle_timeout,
            "close_timeout": self.close_timeout,
            "max_duration": self.max_duration,
            "max_bytes": self.max_bytes,
        }

    def choose(self, request: ProxyRequest) -> UpstreamLike | Awaitable[UpstreamLike | None] | None:
        """The application's choice for this request, made in the calling thread. Raises what its callable raises."""
        return self.upstream(request) if callable(self.upstream) else self.upstream
