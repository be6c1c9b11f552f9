"""A proxied request as the server in front describes it: an ASGI scope or a WSGI environ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from ..core.handshake.headers import Headers
from .paths import PATH_SAFE, VISIBLE, may_decode_to, path_of_target, split_prefix
from .target import ProxyRequest

__all__ = ["request_of_environ", "request_of_scope"]


def request_of_scope(scope: Mapping[str, Any], headers: Headers) -> ProxyRequest:
    """The request of an ASGI scope.

    Args:
        scope: the scope.
        headers: its header fields, parsed.
    """
    prefix = quote(str(scope.get("root_path") or ""), PATH_SAFE)
    raw = path_of_target(bytes(scope.get("raw_path") or b""))
    path = quote(raw, VISIBLE)
    # A middleware may have changed only one of the two paths.
    if split_prefix(path, prefix) is None or unquote(raw.decode("latin-1")) != scope["path"]:
        path = quote(scope["path"], PATH_SAFE)
    return ProxyRequest(
        headers=headers,
        path=path,
        prefix=prefix,
        query=quote(bytes(scope.get("query_string") or b""), VISIBLE),
        secure=scope.get("scheme") in ("wss", "https"),
        client=str((scope.get("client") or ("",))[0]),
        scope=scope,
    )


def request_of_environ(environ: Mapping[str, Any], headers: Headers, target: str | None) -> ProxyRequest:
    """The request of a WSGI environ.

    Args:
        environ: the environ.
        headers: its header fields, parsed.
        target: the request target as received; None where the server does not keep it.
    """
    names = ("SCRIPT_NAME", "PATH_INFO")
    mounted, rest = (str(environ.get(name, "")).encode("latin-1") for name in names)
    prefix = quote(mounted, PATH_SAFE)
    # PATH_INFO is decoded (PEP 3333), so it does not distinguish %2F from "/".
    raw = path_of_target((target or "").encode("latin-1", "replace"))
    path = quote(raw, VISIBLE)
    if split_prefix(path, prefix) is None or not may_decode_to(raw, mounted + rest):
        path = quote(mounted + rest, PATH_SAFE)
    return ProxyRequest(
        headers=headers,
        path=path or "/",
        prefix=prefix,
        query=quote(str(environ.get("QUERY_STRING", "")).encode("latin-1"), VISIBLE),
        secure=environ.get("wsgi.url_scheme") == "https",
        client=str(environ.get("REMOTE_ADDR", "")),
        environ=environ,
    )
