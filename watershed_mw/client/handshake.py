"""The requests of an opening handshake: the first one, and those that redirects and authentication add.

httpx handles redirects, cookies and authentication. This module decides what each request carries, and which redirects
are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from ..core.handshake.extensions import with_plain_offer
from ..core.handshake.headers import REQUEST_FIELDS, check_outgoing
from ..errors import HandshakeError
from ..watershed import Watershed
from .route import Route

__all__ = ["Arguments", "Offer", "RequestOptions", "Requests", "as_http_url", "shown"]

_logger = logging.getLogger("watershed_mw.client")

_SCHEMES = {"ws": "http", "wss": "https", "http": "http", "https": "https"}
_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})
# Fields that go to another origin: those of httpx, those of the opening handshake, and those that identify no user.
_HARMLESS = frozenset({
    "accept", "accept-encoding", "accept-language", "connection", "cookie", "host", "origin", "upgrade", "user-agent",
    "sec-websocket-extensions", "sec-websocket-key", "sec-websocket-protocol", "sec-websocket-version",
})  # fmt: skip


def as_http_url(url: str | httpx.URL) -> httpx.URL:
    """A WebSocket URL as the URL of the HTTP request that opens it (RFC 6455 section 3).

    Raises:
        ValueError: not a WebSocket or HTTP URL, or one with a fragment.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        # httpx quotes the URL, which may contain a password anywhere.
        fault = str(error).partition("'")[0].rstrip(" :,")
        raise ValueError(f"expected a URL such as wss://host/path, got an invalid one: {fault}") from None
    if parsed.scheme not in _SCHEMES or not parsed.host:
        # Without "//" the host, and any password before it, are parsed as part of the path.
        got = f"{parsed.scheme}:..." if "@" in parsed.path else shown(parsed)
        raise ValueError(f"expected a URL such as wss://host/path, got {got!r}")
    if parsed.fragment:
        raise ValueError(f"expected a URL without a fragment (RFC 6455 section 3), got {shown(parsed)!r} with one")
    return parsed.copy_with(scheme=_SCHEMES[parsed.scheme])


def shown(url: httpx.URL) -> str:
    """A URL for errors and logs: no credentials, and no query or fragment, which may hold a token."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What the application puts into the requests, checked.

    Attributes:
        url: HTTP URL of the first request.
        headers: header fields. They go only to the origin of ``url``, and only until a redirect leaves it: the other
            origin could redirect back to any URL.
        cookies: cookies that have a domain.
        follow: names, in lower case, of fields that go to other origins as well.
    """

    url: httpx.URL
    headers: httpx.Headers
    cookies: httpx.Cookies
    follow: frozenset[str]

    @classmethod
    def of(
        cls,
        url: str | httpx.URL,
        headers: Any = None,
        origin: str | None = None,
        cookies: Any = None,
        follow: Iterable[str] = (),
    ) -> RequestOptions:
        """Check these arguments of ``connect()``.

        Cookies without a domain, which httpx would send to every server, become a Cookie field for the origin of
        ``url``.

        Raises:
            ValueError: not a WebSocket URL; or a field that the handshake sets itself, that cannot be sent, or that
                must stay with its origin.
        """
        target = as_http_url(url)
        fields = httpx.Headers(headers)
        if reserved := sorted(REQUEST_FIELDS.intersection(fields)):
            raise ValueError(
                f"expected header fields besides those of the opening handshake, got {', '.join(reserved)}"
            )
        if origin is not None:
            fields["Origin"] = origin
        names = _checked_names(follow)
        of_domains, of_none = httpx.Cookies(), httpx.Cookies()
        for cookie in httpx.Cookies(cookies).jar:
            (of_domains if cookie.domain else of_none).jar.set_cookie(cookie)
        pairs = httpx.Request("GET", target, cookies=of_none).headers.get("cookie", "")
        if merged := _merged(pairs, fields.get("cookie", "")):
            fields["cookie"] = merged
        check_outgoing(fields.multi_items())
        return cls(target, fields, of_domains, names)


def _checked_names(names: Iterable[str]) -> frozenset[str]:
    if isinstance(names, str):
        raise ValueError(f"expected cross_origin_headers as a list of names, got a string: write [{names!r}]")
    found = frozenset(name.lower() for name in names)
    if credentials := sorted(found & _CREDENTIALS):
        raise ValueError(
            f"expected cross_origin_headers without credentials, got {', '.join(credentials)}, which is for one "
            "origin: follow such a redirect yourself, with max_redirects=0"
        )
    return found


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of ``connect()``, checked.

    Attributes:
        request_options: what the application puts into the requests.
        shed: makes keys and handshake fields, and checks the response.
        route: how to reach servers.
        client: arguments for the ``httpx.Client`` or ``httpx.AsyncClient`` of each handshake.
        http: the application's own client, which replaces ``route`` and ``client``.
        open_timeout: seconds for the whole handshake; None for no limit.
    """

    request_options: RequestOptions
    shed: Watershed
    route: Route = field(default_factory=Route)
    client: Mapping[str, Any] = field(default_factory=dict)
    http: httpx.Client | httpx.AsyncClient | None = None
    open_timeout: float | None = None

    def should_retry_plain(self, error: HandshakeError) -> bool:
        """Whether to retry without compression parameters, as the server may have refused those; logs a retry."""
        if error.status != 400 or error.response is None or self.shed.settings.deflate is None:
            return False
        url = shown(self.request_options.url)
        _logger.info("%s refused the opening handshake with 400; retrying without compression parameters", url)
        return True

    def timed_out(self) -> TimeoutError:
        """The error for a handshake that took longer than ``open_timeout``."""
        return TimeoutError(
            f"no WebSocket at {shown(self.request_options.url)} within {self.open_timeout:g} seconds (open_timeout)"
        )


@dataclass(slots=True)
class Offer:
    """How to offer compression to a server.

    Attributes:
        plain: offer it without parameters, as the server refused an offer with them and accepted one without.
    """

    plain: bool = False


@dataclass(slots=True)
class Requests:
    """The requests of one opening handshake.

    Attributes:
        arguments: those of ``connect()``.
        plain: offer compression without parameters.
        key: Sec-WebSocket-Key of the latest request.
    """

    arguments: Arguments
    plain: bool = False
    key: str = ""
    _left_origin: bool = False

    def first(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The first request, with ``client``'s own fields and cookies."""
        shed = self.arguments.shed
        self.key = shed.generate_key()
        fields = shed.request_headers(self.key)
        headers = httpx.Headers({"Accept-Encoding": "identity"})  # the body of a refusal is not decompressed
        headers.update(self.arguments.request_options.headers)
        headers.update((with_plain_offer(fields) or fields) if self.plain else fields)
        return client.build_request("GET", self.arguments.request_options.url, headers=headers)

    def follow_up(self, request: httpx.Request) -> None:
        """Complete a request that follows from a redirect or from authentication, just before it is sent.

        httpx built it from the previous request, without the fields that belong to another origin.

        Raises:
            HandshakeError: the redirect is refused: it leads to another protocol, from TLS to plain text, or away from
                the server behind a Unix socket.
        """
        request_options, shed, url = self.arguments.request_options, self.arguments.shed, request.url
        if url.scheme in ("ws", "wss"):
            request.url = url = url.copy_with(scheme=_SCHEMES[url.scheme])
        if url.scheme not in ("http", "https") or not url.host:
            raise HandshakeError(f"expected a redirect to an HTTP server, got one to {shown(url)}", status=302)
        if request_options.url.scheme == "https" and url.scheme != "https":
            raise HandshakeError(f"expected no redirect from TLS to plain text, got one to {shown(url)}", status=302)
        if _origin(url) != _origin(request_options.url):
            if self.arguments.route.unix is not None:
                raise HandshakeError(
                    f"expected no redirect away from the server behind the Unix socket, got one to {shown(url)}",
                    status=302,
                )
            self._left_origin = True
            # Any field of the application may hold a secret. A Cookie that httpx kept belongs to this origin.
            for name in set(request.headers) - _HARMLESS - request_options.follow:
                del request.headers[name]
        if not self._left_origin:
            _restore_credentials(request.headers, request_options.headers)
        # Each request has its own connection, and each connection needs a new nonce (RFC 6455 section 4.1, point 7).
        self.key = request.headers["Sec-WebSocket-Key"] = shed.generate_key()


def _restore_credentials(headers: httpx.Headers, given: httpx.Headers) -> None:
    """Restore credentials that httpx drops although the origin is the same."""
    if "authorization" in given:
        # httpx drops it where only the spelling of the scheme differs (ws and http).
        headers.setdefault("authorization", given["authorization"])
    if "cookie" in given:
        # httpx drops it on every redirect, and adds the cookies that servers have since set, which take precedence.
        headers["cookie"] = _merged(headers.get("cookie", ""), given["cookie"])


def _merged(newer: str, older: str) -> str:
    """Merge two Cookie fields; where both set a cookie, ``newer`` wins."""
    pairs = {pair.partition("=")[0].strip(): pair.strip() for pair in f"{older};{newer}".split(";") if pair.strip()}
    return "; ".join(pairs.values())


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
