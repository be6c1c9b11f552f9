"""How a request reaches its server: directly, over a Unix socket, or through a proxy; without I/O.

RFC 6455 section 4.1 requires a tunnel (CONNECT) through an HTTP proxy, with or without TLS to the server. httpcore
would have the proxy forward plain requests instead, which most proxies break. So the tunnel is a separate step here.
"""

from __future__ import annotations

import base64
import importlib.util
import ssl
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from ..errors import HandshakeError
from .no_proxy import is_excepted
from .socks import Dialogue, socks_dialogue

__all__ = ["ConnectPlan", "ProxyLike", "Route", "TLSStep", "as_proxy", "by_environment", "check_tunnel"]

ProxyLike: TypeAlias = "str | httpx.URL | httpx.Proxy"
TLSStep: TypeAlias = "tuple[ssl.SSLContext, str]"
"""A TLS handshake: its context, and the server's name."""

_SOCKS = ("socks5", "socks5h")
_SCHEMES = ("http", "https", *_SOCKS)


@dataclass(frozen=True, slots=True)
class ConnectPlan:
    """The steps to a server, in this order, and the request to send there; None for a step that is left out.

    Attributes:
        host, port: address to connect to.
        unix: path of the Unix socket to connect to instead.
        proxy_tls: TLS with the proxy.
        socks: dialogue with a SOCKS proxy.
        tunnel: CONNECT request to an HTTP proxy.
        tls: TLS with the server.
        request: the request.
    """

    request: httpcore.Request
    host: str
    port: int
    unix: str | None = None
    proxy_tls: TLSStep | None = None
    socks: Dialogue | None = None
    tunnel: httpcore.Request | None = None
    tls: TLSStep | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach servers.

    Attributes:
        context: for TLS with a server; None for httpx's default, which verifies certificates.
        unix: path of a Unix socket to connect to instead of any server, or None.
        proxy: the proxy for all servers, or None.
        environment: take the proxy for each URL from the environment instead.
    """

    context: ssl.SSLContext | None = None
    unix: str | None = None
    proxy: httpx.Proxy | None = None
    environment: bool = False

    def plan(self, request: httpx.Request) -> ConnectPlan:
        """Plan an httpx request.

        Raises:
            ValueError: the environment's value is not the URL of a proxy.
            ImportError: the environment names a SOCKS proxy, and the package socksio is missing.
        """
        url = request.url
        target = httpcore.URL(
            scheme=url.raw_scheme,
            host=url.raw_host,
            port=url.port or (443 if url.scheme == "https" else 80),
            target=url.raw_path,
        )
        proxy = by_environment(url) if self.environment and self.unix is None else self.proxy
        return self.plan_to(
            httpcore.Request(request.method, target, headers=request.headers.raw, extensions=request.extensions), proxy
        )

    def plan_to(self, request: httpcore.Request, proxy: httpx.Proxy | None = None) -> ConnectPlan:
        """Plan an httpcore request, through ``proxy`` if given; a Unix socket takes precedence."""
        target = request.url.origin
        host = target.host.decode("ascii")
        tls = None
        if target.scheme == b"https":
            name = str(request.extensions.get("sni_hostname") or host)
            tls = self.context or _default_context(), _name_for_tls(name)
        if proxy is None or self.unix is not None:
            return ConnectPlan(request, host, target.port, self.unix, tls=tls)
        is_socks = proxy.url.scheme in _SOCKS
        proxy_tls = None
        if proxy.url.scheme == "https":
            proxy_tls = proxy.ssl_context or _default_context(), _name_for_tls(proxy.url.host)
        return ConnectPlan(
            request,
            proxy.url.host,
            _port(proxy),
            proxy_tls=proxy_tls,
            socks=socks_dialogue(proxy, host, target.port) if is_socks else None,
            tunnel=None if is_socks else _connect_request(proxy, target),
            tls=tls,
        )


# --- proxies ------------------------------------------------------------------------------------------------


def as_proxy(proxy: ProxyLike) -> httpx.Proxy:
    """Convert ``proxy`` to an ``httpx.Proxy``; its URL may hold credentials.

    Raises:
        ValueError: not the URL of a proxy.
        ImportError: a SOCKS proxy, and the package socksio is missing.
    """
    try:
        made = proxy if isinstance(proxy, httpx.Proxy) else httpx.Proxy(proxy)
    except (ValueError, httpx.InvalidURL):
        made = None
    if made is None or not made.url.host:
        # Only its beginning is shown: the URL may hold a password.
        expected = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise ValueError(f"expected a proxy's URL ({expected}), got {str(proxy).partition(':')[0][:20]!r}...")
    if made.url.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ImportError("expected the package socksio for a SOCKS proxy: pip install 'httpx[socks]'")
    return made


def by_environment(url: httpx.URL) -> httpx.Proxy | None:
    """The proxy that the environment names for this URL (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY), or None."""
    proxies = getproxies()
    found = proxies.get(url.scheme) or proxies.get("all")
    # proxy_bypass() also knows the settings of the operating system.
    if not found or is_excepted(url, proxies.get("no", "")) or proxy_bypass(url.host):
        return None
    return as_proxy(found if "://" in found else f"http://{found}")


def check_tunnel(response: httpcore.Response) -> None:
    """Raise HandshakeError unless a proxy has opened the tunnel."""
    if not 200 <= response.status < 300:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]
        raise HandshakeError(
            f"expected the proxy to open a tunnel (2xx), got {response.status}",
            status=response.status,
            headers=headers,
            body=b"",
        )


def _connect_request(proxy: httpx.Proxy, target: httpcore.Origin) -> httpcore.Request:
    host = b"[%b]" % target.host if b":" in target.host else target.host
    authority = b"%b:%d" % (host, target.port)
    headers: list[tuple[bytes, bytes]] = [(b"Host", authority), *proxy.headers.raw]
    if proxy.raw_auth is not None:
        headers.append((b"Proxy-Authorization", b"Basic " + base64.b64encode(b":".join(proxy.raw_auth))))
    url = httpcore.URL(scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=_port(proxy), target=authority)
    return httpcore.Request(b"CONNECT", url, headers=headers)


def _port(proxy: httpx.Proxy) -> int:
    return proxy.url.port or (1080 if proxy.url.scheme in _SOCKS else 443 if proxy.url.scheme == "https" else 80)


# --- TLS ----------------------------------------------------------------------------------------------------


def _name_for_tls(host: str) -> str:
    """A server's name for SNI and for its certificate: without the trailing dot of a fully qualified name.

    RFC 6066 section 3: "... represented as a byte string using ASCII encoding without a trailing dot." The lookup and
    the Host field keep the dot, as in browsers and curl.
    """
    return host.removesuffix(".")


@lru_cache(maxsize=1)
def _default_context() -> ssl.SSLContext:
    # Cached, as loading the CA certificates can take longer than a handshake.
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
