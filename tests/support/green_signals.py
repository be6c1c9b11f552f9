"""A program under gevent or eventlet (its argument): it sends and receives while signals come all the time.

The signal's handler raises where it runs within a method of their sockets, which are written in Python: the kernel may
have moved bytes by then. The peer is a process of its own, forked before anything is patched. The two print what came
at either end, as JSON: how many messages, whether they are in order with none twice, and how many signals there were.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import warnings
from importlib import import_module
from types import FrameType

COUNT = 20_000
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LAST = b"last"


class RaisedByHandlerError(Exception):
    """The exception that the signal handler raises."""


def report(end: str, messages: list[int], signals: int) -> None:
    in_order = messages == sorted(set(messages))
    print(json.dumps({"end": end, "messages": len(messages), "in order": in_order, "signals": signals}), flush=True)


def be_the_peer(sock: socket.socket) -> None:
    """Read messages up to the last one, then send the same number."""
    seen: list[int] = []
    with sock, sock.makefile("rb") as stream:
        while stream.readline() != b"\r\n":
            pass
        while True:
            opcode, size = stream.read(2)
            assert opcode == 0x82, hex(opcode)
            payload = stream.read(size)
            if payload == LAST:
                break
            seen.append(int(payload))
        report("peer", seen, 0)
        # A mask of zeros.
        payloads = [b"%d" % number for number in range(COUNT)]
        sock.sendall(b"".join(bytes((0x82, 0x80 | len(data), 0, 0, 0, 0)) + data for data in payloads))
        stream.read()


def within(frame: FrameType | None, kind: str) -> bool:
    """Whether one of the two methods of a ``kind`` socket is running."""
    while frame is not None:
        if frame.f_code.co_name in ("send", "recv") and str(frame.f_globals.get("__name__")).startswith(kind):
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

    signals = 0

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        if within(frame, kind):
            raise RaisedByHandlerError

    sock = socket.socket(fileno=ours.detach())
    connection = Watershed(ping_interval=None, origins="*").accept(REQUEST, sock)
    assert isinstance(connection, ThreadConnection)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    for number in range(COUNT):
        try:
            connection.send(b"%d" % number)
        except RaisedByHandlerError:
            pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    connection.send(LAST)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    received: list[int] = []
    while not received or received[-1] < COUNT - 1:
        try:
            received.append(int(connection.receive()))
        except RaisedByHandlerError:
            pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    report("ours", received, signals)
    connection.abort()
    os.wait()


if __name__ == "__main__":
    main(sys.argv[1])
