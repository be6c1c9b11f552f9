"""Blocking streams for the opening handshake: connect, start TLS, and hand the socket over to the connection.

httpcore speaks HTTP over these streams, through its documented interface for network streams. So the connection gets
the bare socket, network errors stay OSErrors, and a server that sends slowly cannot extend the single deadline.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

import httpcore

from ...errors import UnsupportedServerError
from .. import happy_eyeballs
from ..alpn import check_http11, offering_http11
from ..messages import plain_httpcore
from ..route import ConnectPlan, check_tunnel
from ..socks import Dialogue, stream_ended

__all__ = ["ThreadStream", "connect", "send"]


def send(plan: ConnectPlan, deadline: float | None) -> httpcore.Response:
    """Send a request on a new socket, and return the response, whose ``network_stream`` wraps that socket.

    Args:
        plan: the steps to the server, and the request.
        deadline: time of ``time.monotonic()`` at which to give up; None for no limit.

    Raises:
        OSError: the server or its proxy cannot be reached, or the stream broke.
        HandshakeError: the response is not HTTP (502), or the proxy refused.
        UnsupportedServerError: TLS inside a proxy's TLS.
        ValueError: HTTP cannot carry the request.
    """
    stream: ThreadStream | None = None
    try:
        stream = connect(plan.host, plan.port, plan.unix, deadline=deadline)
        if plan.proxy_tls is not None:
            stream.start_tls(*plan.proxy_tls)
        if plan.socks is not None:
            stream.talk(plan.socks)
        if plan.tunnel is not None:
            check_tunnel(httpcore.HTTP11Connection(plan.tunnel.url.origin, stream).handle_request(plan.tunnel))
        if plan.tls is not None:
            stream.start_tls(*plan.tls)
        return httpcore.HTTP11Connection(plan.request.url.origin, stream).handle_request(plan.request)
    except BaseException as error:
        if stream is not None:
            stream.close()
        if (plain := plain_httpcore(error)) is not error:
            raise plain from error
        raise


def connect(host: str, port: int, unix: str | None = None, *, deadline: float | None = None) -> ThreadStream:
    """Connect to a host, given by name or address, or to a Unix socket; ``deadline`` covers the stream as well.

    Raises:
        OSError: the host cannot be reached.
    """
    if unix is not None:
        return ThreadStream(_connect_unix(unix, deadline), deadline)
    return ThreadStream(happy_eyeballs.connect_blocking(host, port, deadline), deadline)


def _connect_unix(path: str, deadline: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_remaining(deadline))
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _remaining(deadline: float | None) -> float | None:
    """Seconds until the deadline. Raises TimeoutError once it has passed."""
    if deadline is None:
        return None
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the time for the opening handshake has run out")
    return seconds


class ThreadStream(httpcore.NetworkStream):
    """A blocking stream on a socket, with one deadline for everything.

    Args:
        sock: plain or TLS socket.
        deadline: time of ``time.monotonic()``; None for no limit.
    """

    def __init__(self, sock: socket.socket, deadline: float | None) -> None:
        self._socket = sock
        self._deadline = deadline

    def _wait_at_most(self, timeout: float | None) -> None:
        seconds = _remaining(self._deadline)
        self._socket.settimeout(seconds if timeout is None or (seconds is not None and seconds < timeout) else timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At most ``max_bytes`` bytes; none at the end of the stream."""
        self._wait_at_most(timeout)
        return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of it."""
        if not buffer:
            return  # httpcore's empty body: sending it could fail and hide a response that has arrived
        self._wait_at_most(timeout)
        try:
            self._socket.sendall(buffer)
        except ConnectionError as error:
            raise httpcore.WriteError(error) from error  # httpcore then reads a response that may have arrived

    def talk(self, dialogue: Dialogue) -> None:
        """Carry out a dialogue. Raises as the dialogue does, and HandshakeError if the stream ends."""
        data, size = next(dialogue)
        while True:
            self.write(data)
            answer = b""
            while len(answer) < size:
                if not (part := self.read(size - len(answer))):
                    raise stream_ended()
                answer += part
            try:
                data, size = dialogue.send(answer)
            except StopIteration:
                return

    def close(self) -> None:
        """Close the socket, unless it has been taken."""
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> ThreadStream:
        """Start TLS on this stream.

        Raises:
            OSError: the TLS handshake failed.
            HandshakeError: the server chose a protocol other than HTTP/1.1.
            UnsupportedServerError: the stream speaks TLS already, and a socket cannot speak TLS inside TLS.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            self.close()
            raise UnsupportedServerError(
                "expected a proxy without TLS (http://), as a blocking socket cannot speak TLS inside TLS: use such a "
                "proxy, or the asyncio flavour"
            )
        self._wait_at_most(timeout)
        try:
            # In two steps, so that self._socket can be closed if the handshake is interrupted.
            with offering_http11(ssl_context):
                tls = ssl_context.wrap_socket(
                    self._socket, server_hostname=server_hostname, do_handshake_on_connect=False
                )
            self._socket = tls
            tls.do_handshake()
            check_http11(tls)
        except BaseException:
            self.close()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        """Socket details for httpcore and httpx."""
        if info == "socket":
            return self._socket
        if info == "ssl_object":
            return self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        if info == "client_addr":
            return self._socket.getsockname()
        return self._socket.getpeername() if info == "server_addr" else None
