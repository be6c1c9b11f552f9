"""Request targets (RFC 9112 section 3.2): made from a URL, and converted from absolute form to origin form."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

from ..core.handshake.headers import Headers
from ..core.handshake.negotiation import Request

__all__ = ["CONTROL", "environ_to_origin_form", "host_and_target", "in_origin_form", "scope_to_origin_form"]


CONTROL = re.compile(r"[\x00-\x1f\x7f]")


_SCHEMES = ("http", "https", "ws", "wss")


def host_and_target(url: str) -> tuple[str, str]:
    """The Host field and the target of a request for ``url``.

    Raises:
        ValueError: not a WebSocket or HTTP URL, or one that needs percent-encoding.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError(f"expected a URL such as ws://host:port/path, got {url!r}")
    if parts.fragment:
        raise ValueError(f"expected a URL without a fragment (RFC 6455 section 3), got {url!r}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or not target.isprintable() or " " in target:
        raise ValueError(f"expected a URL whose path and query are percent-encoded ASCII, got {url!r}")
    return parts.netloc.rpartition("@")[2], target


def _origin_form(target: str) -> tuple[str | None, str]:
    """Convert a request target: the host of an absolute form, or None, and the target in origin form.

    RFC 9112 section 3.2.2: a server must accept the absolute form, which clients send to proxies, and must use its
    host instead of the Host field.
    """
    scheme, separator, rest = target.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        return None, target
    host = rest
    for end in "/?#":
        host = host.partition(end)[0]
    path = rest[len(host) :]
    return host, path if path.startswith("/") else f"/{path}"


def in_origin_form(request: Request) -> Request:
    """``request`` with its target in origin form; the host of an absolute form replaces the Host field."""
    if request.target.startswith("/"):
        return request
    host, target = _origin_form(request.target)
    # A missing or repeated Host field stays an error (RFC 9112 section 3.2).
    if host is None or len(request.headers.get_all("host")) != 1:
        return request
    headers = Headers([(name, host if name == "host" else value) for name, value in request.headers])
    return replace(request, headers=headers, target=target)


def scope_to_origin_form(scope: MutableMapping[str, Any]) -> None:
    """Split an absolute-form target into the scope's path and Host field, if the server has not done so."""
    path: str = scope["path"]
    if "://" not in path:
        return
    # uvicorn puts its root path in front of the target as received.
    root = str(scope.get("root_path") or "")
    root = root if path.startswith(root) else ""
    raw = bytes(scope.get("raw_path") or b"").decode("latin-1")
    host, target = _origin_form(raw.removeprefix(root) or path.removeprefix(root))
    fields = list(scope["headers"])
    if host is None or [name.lower() for name, _ in fields].count(b"host") != 1:
        return
    scope["path"] = root + (unquote(target) if raw else target)
    scope["raw_path"] = (root + target).encode("latin-1", "replace") if raw else None
    scope["headers"] = [
        (name, host.encode("latin-1", "replace") if name.lower() == b"host" else value) for name, value in fields
    ]


def environ_to_origin_form(environ: MutableMapping[str, Any]) -> None:
    """As :func:`scope_to_origin_form`, for a WSGI environ; some servers split only the path, others nothing."""
    host, target = _origin_form(str(environ.get("PATH_INFO", "")))
    if host is not None:
        environ["PATH_INFO"] = target
    for name in ("RAW_URI", "REQUEST_URI"):  # percent-encoded, with the query; set by some servers
        named, target = _origin_form(str(environ.get(name, "")))
        if named is not None:
            host, environ[name] = named, target
    if host is None:
        return
    environ["PATH_INFO"] = environ.get("PATH_INFO") or ("" if environ.get("SCRIPT_NAME") else "/")
    if "HTTP_HOST" in environ:
        environ["HTTP_HOST"] = host
