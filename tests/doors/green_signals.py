"""A program under gevent or eventlet (its argument): it sends while a signal's handler raises within their sockets.

The peer is a process of its own, forked before anything is patched. It prints how many messages came, and how many of
them came twice.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import warnings
from importlib import import_module
from types import FrameType

COUNT = 20_000
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class RaisedByHandlerError(Exception):
    """What the signal's handler raises."""


def be_the_peer(sock: socket.socket) -> None:
    seen: list[int] = []
    with sock, sock.makefile("rb") as stream:
        while stream.readline() != b"\r\n":
            pass
        while head := stream.read(2):
            assert head[0] == 0x82, head
            seen.append(int(stream.read(head[1])))
    print(len(seen), len(seen) - len(set(seen)), seen == sorted(seen), flush=True)


def within(frame: FrameType | None, kind: str) -> bool:
    """Whether one of the socket's methods runs."""
    while frame is not None:
        if frame.f_code.co_name == "send" and str(frame.f_globals.get("__name__")).startswith(kind):
            return True
        frame = frame.f_back
    return False


def main(kind: str) -> None:
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        be_the_peer(theirs)
        return
    theirs.close()
    warnings.simplefilter("ignore")
    if kind == "gevent":
        import_module("gevent.monkey").patch_all()
    else:
        import_module("eventlet").monkey_patch()
    import signal

    from watershed_mw import ThreadConnection, Watershed

    def handler(number: int, frame: FrameType | None) -> None:
        if within(frame, kind):
            raise RaisedByHandlerError

    sock = socket.socket(fileno=ours.detach())
    connection = Watershed(ping_interval=None, origins="*").accept(REQUEST, sock)
    assert isinstance(connection, ThreadConnection)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    began = time.monotonic()
    for number in range(COUNT):
        try:
            connection.send(b"%d" % number)
        except RaisedByHandlerError:
            pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert time.monotonic() > began
    connection.break_off()
    os.wait()


if __name__ == "__main__":
    main(sys.argv[1])
