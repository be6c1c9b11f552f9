"""The requests of an opening handshake: their URLs, the first one, and those that redirects and authentication add.

httpx decides about redirects, cookies and authentication. This module decides what each request carries, and which
redirects are not followed.
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

__all__ = ["Arguments", "Asked", "Offer", "Requests", "as_http_url", "shown"]

_logger = logging.getLogger("watershed_mw.client")

_SCHEMES = {"ws": "http", "wss": "https", "http": "http", "https": "https"}
_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})
# What goes to another origin: fields that httpx adds, the opening handshake, and fields that identify no user.
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
        # httpx quotes the URL, which may hold a password in any place.
        fault = str(error).partition("'")[0].rstrip(" :,")
        raise ValueError(f"expected a URL such as wss://host/path, got an invalid one: {fault}") from None
    if parsed.scheme not in _SCHEMES or not parsed.host:
        # Without "//" the host is parsed as a part of the path, and so is a password.
        got = f"{parsed.scheme}:..." if "@" in parsed.path else shown(parsed)
        raise ValueError(f"expected a URL such as wss://host/path, got {got!r}")
    if parsed.fragment:
        raise ValueError(f"expected a URL without a fragment (RFC 6455 section 3), got {shown(parsed)!r} with one")
    return parsed.copy_with(scheme=_SCHEMES[parsed.scheme])


def shown(url: httpx.URL) -> str:
    """A URL for errors and logs: no credentials, and no query or fragment, which may hold a token."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


@dataclass(frozen=True, slots=True)
class Asked:
    """What an application asks for in its requests, checked.

    Attributes:
        url: HTTP URL of the first request.
        headers: header fields. They are for the origin of ``url`` alone, and only until a redirect leads to another
            origin, which could redirect back to any URL of its choice.
        cookies: cookies of named domains.
        follow: names of fields that go to another origin all the same, in lower case.
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
    ) -> Asked:
        """What these arguments of ``connect()`` ask for.

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
        asked: what the requests ask for.
        shed: makes keys and handshake fields, and checks the answer.
        route: how servers are reached.
        client: how an ``httpx.Client`` or ``httpx.AsyncClient`` is made for one handshake.
        http: the application's own client, which replaces ``route`` and ``client``.
        open_timeout: seconds for the whole handshake; None for no limit.
    """

    asked: Asked
    shed: Watershed
    route: Route = field(default_factory=Route)
    client: Mapping[str, Any] = field(default_factory=dict)
    http: httpx.Client | httpx.AsyncClient | None = None
    open_timeout: float | None = None

    def asks_plainly_after(self, error: HandshakeError) -> bool:
        """Whether to ask again, as the server may have refused the parameters of the compression offer; logged."""
        if error.status != 400 or error.response is None or self.shed.settings.deflate is None:
            return False
        url = shown(self.asked.url)
        _logger.info("%s refused the opening handshake with 400; asking again without compression parameters", url)
        return True

    def timed_out(self) -> TimeoutError:
        """The error of a handshake that took longer than ``open_timeout``."""
        return TimeoutError(
            f"no WebSocket at {shown(self.asked.url)} within {self.open_timeout:g} seconds (open_timeout)"
        )


@dataclass(slots=True)
class Offer:
    """How compression is offered to one server.

    Attributes:
        plain: without parameters: the server has refused an offer with some, and accepted one without.
    """

    plain: bool = False


@dataclass(slots=True)
class Requests:
    """The requests of one opening handshake.

    Attributes:
        arguments: what was asked for.
        plain: offer compression without parameters.
        key: Sec-WebSocket-Key of the newest request.
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
        headers.update(self.arguments.asked.headers)
        headers.update((with_plain_offer(fields) or fields) if self.plain else fields)
        return client.build_request("GET", self.arguments.asked.url, headers=headers)

    def follow_up(self, request: httpx.Request) -> None:
        """Complete a request that a redirect or authentication has led to, just before it is sent.

        httpx has built it from the one before, and dropped fields that do not belong to its origin.

        Raises:
            HandshakeError: a redirect that is not followed: to another protocol, from TLS to plain text, or away from
                the server behind a Unix socket.
        """
        asked, shed, url = self.arguments.asked, self.arguments.shed, request.url
        if url.scheme in ("ws", "wss"):
            request.url = url = url.copy_with(scheme=_SCHEMES[url.scheme])
        if url.scheme not in ("http", "https") or not url.host:
            raise HandshakeError(f"expected a redirect to an HTTP server, got one to {shown(url)}", status=302)
        if asked.url.scheme == "https" and url.scheme != "https":
            raise HandshakeError(f"expected no redirect from TLS to plain text, got one to {shown(url)}", status=302)
        if _origin(url) != _origin(asked.url):
            if self.arguments.route.unix is not None:
                raise HandshakeError(
                    f"expected no redirect away from the server behind the Unix socket, got one to {shown(url)}",
                    status=302,
                )
            self._left_origin = True
            # Any field of the application may hold a key. A Cookie that httpx has left is for this origin.
            for name in set(request.headers) - _HARMLESS - asked.follow:
                del request.headers[name]
        if not self._left_origin:
            _restore_credentials(request.headers, asked.headers)
        # Each request has a connection of its own, and each connection a new nonce (section 4.1, point 7).
        self.key = request.headers["Sec-WebSocket-Key"] = shed.generate_key()


def _restore_credentials(headers: httpx.Headers, given: httpx.Headers) -> None:
    """Put credentials back that httpx drops although the origin is the same."""
    if "authorization" in given:
        # httpx drops it where only the spelling of the scheme differs.
        headers.setdefault("authorization", given["authorization"])
    if "cookie" in given:
        # httpx drops it on every redirect, and adds the cookies that servers have set since, which take precedence.
        headers["cookie"] = _merged(headers.get("cookie", ""), given["cookie"])


def _merged(newer: str, older: str) -> str:
    """Two Cookie fields as one; where both hold a cookie, the first field's value counts."""
    pairs = {pair.partition("=")[0].strip(): pair.strip() for pair in f"{older};{newer}".split(";") if pair.strip()}
    return "; ".join(pairs.values())


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
