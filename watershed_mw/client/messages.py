"""Converts responses, refusals and errors between httpcore, httpx and this package."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

import httpcore
import httpx

from ..errors import HandshakeError, WatershedError
from .handshake import shown

__all__ = ["CLOSING_ERRORS", "MAX_REFUSAL", "as_httpx", "own_stream", "plain_httpcore", "plain_httpx", "refusal"]

MAX_REFUSAL: Final = 64 * 2**10
"""Maximum bytes read from a refusal's body: enough for an error page or an API's error document."""

CLOSING_ERRORS: Final = (httpx.HTTPError, httpcore.ProtocolError, OSError)
"""Errors that reading or closing a response may raise once its head has been read."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BODY_FIELDS = frozenset({"content-encoding", "content-length", "transfer-encoding"})
# Maximum characters of an HTTP parser's message, which quotes its input.
_MAX_MESSAGE = 200


def as_httpx(response: httpcore.Response, body: Callable[[httpcore.Response, int], Any]) -> httpx.Response:
    """Convert an httpcore response to an httpx response.

    Args:
        response: the response.
        body: makes the body's stream, given the response and the maximum bytes to read.
    """
    # The request asked for no compression, and httpx would inflate the 64 KiB of a hostile server without a limit.
    headers = [field for field in response.headers if field[0].lower() != b"content-encoding"]
    # httpx reads the body of a redirect to its end before it follows the redirect.
    located = any(name.lower() == b"location" for name, _ in headers)
    limit = 0 if located and response.status in _REDIRECTS else MAX_REFUSAL
    return httpx.Response(
        response.status, headers=headers, extensions=response.extensions, stream=body(response, limit)
    )


def own_stream(response: httpx.Response) -> Any:
    """The network stream of a refusal, to close before the response; None over HTTP/2, where requests share it.

    A client's pool would reuse the stream for the next handshake. Many servers close it after a refusal without
    announcing that, and the next request would get no response.
    """
    return response.extensions.get("network_stream") if response.http_version.startswith("HTTP/1") else None


def refusal(response: httpx.Response, body: bytes) -> HandshakeError:
    """The error for a response that is not a 101, with the part of its body that was read."""
    # The fields about the body are dropped: it is not decoded, as it could inflate, and may be shorter than announced.
    body = body[:MAX_REFUSAL]
    headers = [pair for pair in response.headers.multi_items() if pair[0].lower() not in _BODY_FIELDS]
    whole = httpx.Response(
        response.status_code, headers=headers, content=body, request=response.request, history=response.history
    )
    phrase = f" {response.reason_phrase}" if response.reason_phrase else ""
    return HandshakeError(
        f"expected status 101 (Switching Protocols), got {response.status_code}{phrase} from {shown(response.url)}",
        status=response.status_code,
        headers=headers,
        body=body,
        response=whole,
    )


def plain_httpx(error: httpx.HTTPError | httpx.InvalidURL) -> Exception:
    """Translate an httpx error: to the network error that caused it, or to a failed handshake."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        # anyio wraps a refused connection in "All connection attempts failed".
        return cause.__cause__ if isinstance(cause.__cause__, OSError) else cause
    if isinstance(error, httpx.TimeoutException):
        return TimeoutError(str(error))
    if isinstance(error, httpx.NetworkError):
        return ConnectionError(str(error))
    status = 302 if isinstance(error, httpx.TooManyRedirects) else 502
    return HandshakeError(f"expected an answer to the opening handshake, got: {error}", status=status)


def plain_httpcore(error: BaseException) -> BaseException:
    """Translate an httpcore error to OSError, HandshakeError or ValueError; any other error stays unchanged."""
    if isinstance(error, (OSError, WatershedError)) or not isinstance(error, Exception):
        return error
    if isinstance(error, UnicodeError):
        return socket.gaierror(socket.EAI_NONAME, "not a valid host name")
    text = str(error) or type(error).__name__
    text = text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "..."
    if isinstance(error, httpcore.LocalProtocolError):
        return ValueError(f"expected a request that HTTP can carry, got: {text}")
    if isinstance(error, httpcore.WriteError):
        return ConnectionResetError(text)
    if isinstance(error, httpcore.ProtocolError):
        return HandshakeError(f"expected an HTTP answer, got: {text}", status=502, body=b"")
    return error
