"""Which way a request takes to its server: straight, over a Unix socket, or through a proxy.

RFC 6455 section 4.1 has a client ask an HTTP proxy for a tunnel (CONNECT), whether TLS follows or not; httpcore would
forward plain requests instead, which most proxies break. So the tunnel is asked for here, through httpcore.
"""

from __future__ import annotations

import base64
import importlib.util
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from ..errors import HandshakeError, WatershedError
from . import streams
from .no_proxy import is_excepted
from .socks import socks_dialogue

__all__ = ["ProxyLike", "Route", "as_proxy", "by_environment"]

ProxyLike: TypeAlias = "str | httpx.URL | httpx.Proxy"

_SOCKS = ("socks5", "socks5h")
_SCHEMES = ("http", "https", *_SOCKS)
# Characters of what a parser has to say, which quotes what it was given.
_MOST_OF_A_FAULT = 200


def as_proxy(proxy: ProxyLike) -> httpx.Proxy:
    """``proxy`` as httpx knows it; credentials may be in its URL.

    Raises:
        ValueError: no URL, or not of a proxy.
        ImportError: it is a SOCKS proxy, and the package socksio is missing.
    """
    try:
        made = proxy if isinstance(proxy, httpx.Proxy) else httpx.Proxy(proxy)
    except (ValueError, httpx.InvalidURL):
        made = None
    if made is None or not made.url.host:
        # Not what came: a proxy's URL may hold a password.
        expected = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise ValueError(f"expected a proxy's URL ({expected}), got {str(proxy).partition(':')[0][:20]!r}...")
    if made.url.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ImportError("expected the package socksio for a SOCKS proxy: pip install 'httpx[socks]'")
    return made


def by_environment(url: httpx.URL) -> httpx.Proxy | None:
    """The proxy that the environment names for this URL (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY), or None."""
    proxies = getproxies()
    found = proxies.get(url.scheme) or proxies.get("all")
    # Outside of the environment there may be settings of the operating system, which urllib knows.
    if not found or is_excepted(url, proxies.get("no", "")) or proxy_bypass(url.host):
        return None
    return as_proxy(found if "://" in found else f"http://{found}")


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach servers.

    Attributes:
        context: for TLS with a server; None for httpx's default, which verifies certificates.
        unix: path of the Unix socket that stands for every server, or None.
        proxy: the one proxy for all, None for none; asked of the environment for each URL if ``environment``.
    """

    context: ssl.SSLContext | None = None
    unix: str | None = None
    proxy: httpx.Proxy | None = None
    environment: bool = False

    def proxy_for(self, url: httpx.URL) -> httpx.Proxy | None:
        """The proxy that stands between here and ``url``."""
        if self.unix is not None:
            return None
        return by_environment(url) if self.environment else self.proxy

    async def request(self, request: httpcore.Request, proxy: httpx.Proxy | None) -> httpcore.Response:
        """Send a request on an asyncio stream of its own, and return the response.

        Raises:
            OSError: no way there, or it broke off.
            HandshakeError: what came is no HTTP (502), or the proxy refused.
            UnsupportedServerError: TLS inside of a proxy's TLS, on a blocking socket.
            ValueError: HTTP cannot carry the request.
        """
        target = request.url.origin
        faster = streams.is_faster(self._contexts(target, proxy))
        stream: streams.AsyncioStream | None = None
        try:
            if proxy is None:
                stream = await streams.connect_asyncio(_host(target), target.port, self.unix, faster=faster)
            else:
                stream = await streams.connect_asyncio(proxy.url.host, _port(proxy), faster=faster)
                if proxy.url.scheme == "https":
                    stream = await stream.start_tls(_for_proxy(proxy), _name_for_tls(proxy.url.host))
                if proxy.url.scheme in _SOCKS:
                    await stream.talk(socks_dialogue(proxy, _host(target), target.port))
                else:
                    tunnel = httpcore.AsyncHTTP11Connection(_origin(proxy), stream)
                    _check_tunnel(await tunnel.handle_async_request(_connect_request(proxy, target)))
            if target.scheme == b"https":
                stream = await stream.start_tls(self.context or _default_context(), _server_name(request))
            return await httpcore.AsyncHTTP11Connection(target, stream).handle_async_request(request)
        except BaseException as error:
            if stream is not None:
                await stream.aclose()
            if (plain := _plainly(error)) is not error:
                raise plain from error
            raise

    def request_blocking(
        self, request: httpcore.Request, proxy: httpx.Proxy | None, deadline: float | None
    ) -> httpcore.Response:
        """As :meth:`request`, on a socket of its own, until ``deadline``."""
        target = request.url.origin
        stream: streams.ThreadStream | None = None
        try:
            if proxy is None:
                stream = streams.connect_threads(_host(target), target.port, self.unix, deadline=deadline)
            else:
                stream = streams.connect_threads(proxy.url.host, _port(proxy), deadline=deadline)
                if proxy.url.scheme == "https":
                    stream = stream.start_tls(_for_proxy(proxy), _name_for_tls(proxy.url.host))
                if proxy.url.scheme in _SOCKS:
                    stream.talk(socks_dialogue(proxy, _host(target), target.port))
                else:
                    tunnel = httpcore.HTTP11Connection(_origin(proxy), stream)
                    _check_tunnel(tunnel.handle_request(_connect_request(proxy, target)))
            if target.scheme == b"https":
                stream = stream.start_tls(self.context or _default_context(), _server_name(request))
            return httpcore.HTTP11Connection(target, stream).handle_request(request)
        except BaseException as error:
            if stream is not None:
                stream.close()
            if (plain := _plainly(error)) is not error:
                raise plain from error
            raise

    def _contexts(self, target: httpcore.Origin, proxy: httpx.Proxy | None) -> Iterator[ssl.SSLContext]:
        """What TLS will be spoken with on the way to ``target``."""
        if proxy is not None and proxy.url.scheme == "https":
            yield _for_proxy(proxy)
        if target.scheme == b"https":
            yield self.context or _default_context()


def _host(origin: httpcore.Origin) -> str:
    return origin.host.decode("ascii")


def _server_name(request: httpcore.Request) -> str:
    return _name_for_tls(str(request.extensions.get("sni_hostname") or _host(request.url.origin)))


def _name_for_tls(host: str) -> str:
    """The name of a server for SNI, and for its certificate: without the dot that makes a name fully qualified.

    RFC 6066 section 3: "... represented as a byte string using ASCII encoding without a trailing dot." It is looked up
    with its dot, and stands with it in the Host field, as with browsers and curl.
    """
    return host.removesuffix(".")


def _origin(proxy: httpx.Proxy) -> httpcore.Origin:
    return httpcore.Origin(proxy.url.raw_scheme, proxy.url.raw_host, _port(proxy))


def _port(proxy: httpx.Proxy) -> int:
    return proxy.url.port or (1080 if proxy.url.scheme in _SOCKS else 443 if proxy.url.scheme == "https" else 80)


def _for_proxy(proxy: httpx.Proxy) -> ssl.SSLContext:
    return proxy.ssl_context or _default_context()


@lru_cache(maxsize=1)
def _default_context() -> ssl.SSLContext:
    # To read the authorities' certificates takes longer than many a handshake.
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _connect_request(proxy: httpx.Proxy, target: httpcore.Origin) -> httpcore.Request:
    host = b"[%b]" % target.host if b":" in target.host else target.host
    authority = b"%b:%d" % (host, target.port)
    headers: list[tuple[bytes, bytes]] = [(b"Host", authority), *proxy.headers.raw]
    if proxy.raw_auth is not None:
        headers.append((b"Proxy-Authorization", b"Basic " + base64.b64encode(b":".join(proxy.raw_auth))))
    url = httpcore.URL(scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=_port(proxy), target=authority)
    return httpcore.Request(b"CONNECT", url, headers=headers)


def _check_tunnel(response: httpcore.Response) -> None:
    if not 200 <= response.status < 300:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]
        raise HandshakeError(
            f"expected the proxy to open a tunnel (2xx), got {response.status}",
            status=response.status,
            headers=headers,
            body=b"",
        )


def _plainly(error: BaseException) -> BaseException:
    """What httpcore raises, as :meth:`Route.request` says; the error itself if it is none of theirs."""
    if isinstance(error, (OSError, WatershedError)) or not isinstance(error, Exception):
        return error
    if isinstance(error, UnicodeError):
        return socket.gaierror(socket.EAI_NONAME, "the host's name cannot be one")
    said = str(error) or type(error).__name__
    said = said if len(said) <= _MOST_OF_A_FAULT else said[:_MOST_OF_A_FAULT] + "..."
    if isinstance(error, httpcore.LocalProtocolError):
        return ValueError(f"expected a request that HTTP can carry, got: {said}")
    if isinstance(error, httpcore.WriteError):
        return ConnectionResetError(said)
    if isinstance(error, httpcore.ProtocolError):
        return HandshakeError(f"expected an HTTP answer, got: {said}", status=502, body=b"")
    return error
