"""The Origin check, which prevents cross-site WebSocket hijacking.

Browsers send cookies with every upgrade, and an Origin header that pages cannot change (RFC 6455 sections 4.1 and
10.2). By default, only pages from the request's own host may connect. Requests without an Origin are accepted: they do
not come from a browser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from urllib.parse import urlsplit

from ...errors import HandshakeError
from .headers import Headers, shown

__all__ = ["check_origin", "check_origins"]

_ORIGIN = re.compile(r"[a-z]+://[^\x00-\x20\x7f-\U0010ffff/?#@]+")
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
# Pages of extensions (chrome-extension, safari-web-extension) and applications (capacitor, ionic, tauri, app, file,
# vscode-webview, and other names that applications register) also have origins. Their host is opaque (WHATWG URL
# section 3.5) and may be empty, as in "file://": they are compared literally.
_APPLICATION = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://[A-Za-z0-9._~-]*(:[0-9]{1,5})?")
# Origins with the special schemes of the web (WHATWG URL section 3.1) are compared by their parts.
_NO_APPLICATIONS = frozenset({*_DEFAULT_PORTS, "ftp"})


def check_origins(origins: str | Sequence[str] | None) -> str | tuple[str, ...] | None:
    """Validate the ``origins`` option, so that a misspelt pattern is an error at startup.

    Raises:
        ValueError: it is not None, ``"*"`` or a list of patterns such as
            ``"https://a.example"``, ``"https://a.example:8443"``, ``"*.b.example"``, ``"localhost:*"``,
            ``"chrome-extension://abc"``, ``"capacitor://localhost"``, ``"file://"`` or ``"null"``.
    """
    if origins is None or origins == "*":
        return origins
    if isinstance(origins, str):
        raise ValueError(f"expected a list of origins or '*', got the string {origins!r}: write [{origins!r}]")
    for pattern in origins:
        if pattern == "*":
            raise ValueError("got '*' inside a list: write origins='*' to allow every origin")
        if pattern == "null" or (_is_application(pattern) and not _misspelt(pattern)):
            continue
        if _pattern(pattern) is None:
            raise ValueError(
                "expected an origin such as 'https://a.example', '*.b.example', 'localhost:*' or "
                f"'capacitor://localhost', got {pattern!r}"
            )
    return tuple(origins)


def _is_application(pattern: str) -> bool:
    """Whether this is the origin of an application or an extension."""
    match = _APPLICATION.fullmatch(pattern)
    return match is not None and match["scheme"] not in _NO_APPLICATIONS


def _misspelt(pattern: str) -> bool:
    """Whether this is probably a misspelt web origin, such as "htps://a.example", which would never match."""
    return bool(get_close_matches(pattern.partition("://")[0], ("http", "https"), cutoff=0.8))


def check_origin(headers: Headers, allowed: str | Sequence[str] | None) -> None:
    """Accept requests without an Origin, from the same host, or from an origin in ``allowed``.

    Raises:
        HandshakeError: with status 403.
    """
    origin = headers.get_one("origin")
    if origin is None or allowed == "*":
        return
    parts = _split(origin)
    if parts is not None:
        scheme, host, port = parts
        # A proxy that terminates TLS hides the request's scheme: compare host and port only.
        own = _split(f"{scheme}://{headers.get('host')}")
        if own is not None and own[1:] == (host, port):
            return
    for pattern in allowed or ():
        if pattern == "null" or _is_application(pattern):
            if origin == pattern:
                return
        elif parts is not None and _matches(pattern, *parts):
            return
    raise HandshakeError(
        f"expected the origin of host {shown(headers.get('host'))} or an allowed one, got {shown(origin)}: add it to "
        "the server's origins option if its pages may connect",
        status=403,
    )


def _split(origin: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of an origin (RFC 6454 section 4), or None if it is not one."""
    # urlsplit ignores tabs, line ends and a lone "?", which an origin must not contain.
    if not _ORIGIN.fullmatch(origin):
        return None
    try:
        parts = urlsplit(origin)
        port = _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    except (ValueError, KeyError):
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname and port else None


def _pattern(pattern: str) -> tuple[str, str, int | None] | None:
    """Scheme (may be empty), host and port (None for any) of a pattern, or None if it is not one."""
    scheme, separator, rest = pattern.rpartition("://")
    if separator and scheme not in _DEFAULT_PORTS:
        return None
    any_port = rest.endswith(":*")
    rest = rest.removesuffix(":*")
    parts = _split(f"{scheme or 'http'}://{rest}")
    # A wildcard is allowed only as the leading "*.", for one or more labels.
    if parts is None or "*" in (bare := parts[1].removeprefix("*.")) or not bare:
        return None
    if any_port:
        return scheme, parts[1], None
    explicit = _split(f"https://{rest}") == (("https", *parts[1:]))
    return scheme, parts[1], parts[2] if scheme or explicit else 0


def _matches(pattern: str, scheme: str, host: str, port: int) -> bool:
    wanted = _pattern(pattern)
    if wanted is None:
        return False
    wanted_scheme, wanted_host, wanted_port = wanted
    if wanted_scheme and wanted_scheme != scheme:
        return False
    # Port 0 means the scheme's default, for a pattern with neither scheme nor port.
    if wanted_port is not None and port != (wanted_port or _DEFAULT_PORTS.get(scheme)):
        return False
    if wanted_host.startswith("*."):
        return host.endswith(wanted_host[1:]) and len(host) > len(wanted_host) - 1
    return host == wanted_host
