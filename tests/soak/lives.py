"""The lives of connections: numbered messages of all sizes, each of which must be echoed unchanged, and an end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from tests.soak.apps import END
from watershed_mw import ConnectionClosed
from watershed_mw.client import connect
from watershed_mw.core.frames.codec import encode_frame

__all__ = ["ENDINGS", "Tally", "live_asyncio", "live_threads", "live_wild"]

SIZES: Final = (0, 1, 20, 125, 126, 127, 1000, 4096, 65_535, 65_536, 200_000)
ENDINGS: Final = ("client closes", "server closes", "destroyed", "destroyed in flight")
LIMIT: Final = 30.0
"""Seconds for one life: reached only where something hangs."""
KEY: Final = b"\1\2\3\4"


class Tally(Counter[str]):
    """The statistics of one door."""

    def check(self, condition: object, what: str) -> None:
        """Raise AssertionError unless the condition holds."""
        if not condition:
            raise AssertionError(what)


def _message(number: int, generator: random.Random) -> str | bytes:
    """A unique message; every second one is hard to compress."""
    size = generator.choice(SIZES)
    head = f"{number}:"
    if generator.random() < 0.5:
        return (head + "abcé" * (size // 4))[:size] if size < len(head) else head + "abcé" * ((size - len(head)) // 4)
    return (head.encode() + generator.randbytes(size))[:size]


def _plan(generator: random.Random) -> tuple[list[str | bytes], str, dict[str, Any]]:
    messages = [_message(number, generator) for number in range(generator.randint(0, 12))]
    return messages, generator.choice(ENDINGS), {"compression": generator.random() < 0.5}


async def live_asyncio(url: str, seed: int, tally: Tally) -> None:
    """One life of the asyncio client, which reads and writes at the same time."""
    generator = random.Random(seed)
    messages, ending, options = _plan(generator)
    async with asyncio.timeout(LIMIT):
        connection = await connect(url, **options)
        try:
            sending = asyncio.ensure_future(_send_all(connection, messages))
            try:
                if ending == "destroyed in flight":
                    await asyncio.sleep(generator.random() / 1000)
                    connection.destroy()
                else:
                    for number, expected in enumerate(messages):
                        _compare(tally, number, await connection.receive(), expected)
            finally:
                with contextlib.suppress(ConnectionClosed):
                    await sending
            await _end_asyncio(connection, ending, tally)
        finally:
            connection.destroy()
    tally[ending] += 1


async def _send_all(connection: Any, messages: list[str | bytes]) -> None:
    for message in messages:
        await connection.send(message)


async def _end_asyncio(connection: Any, ending: str, tally: Tally) -> None:
    if ending == "client closes":
        await connection.end()
        tally.check(connection.close_code == 1000, f"expected 1000, got {connection.close_code}")
    elif ending == "server closes":
        await connection.send(END)
        try:
            await connection.receive()
        except ConnectionClosed as error:
            tally.check(error.code == 4001, f"expected the server's 4001, got {error.code}")
        else:
            raise AssertionError("a message that nobody sent")
    else:
        connection.destroy()


def live_threads(url: str, seed: int, tally: Tally) -> None:
    """One life of the threads client, with one message in flight, or several small ones."""
    generator = random.Random(seed)
    messages, ending, options = _plan(generator)
    with connect(url, **options) as connection:
        waiting: list[tuple[int, str | bytes]] = []
        for number, message in enumerate(messages):
            connection.send(message)
            waiting.append((number, message))
            if len(message) > 4096 or len(waiting) == 4:
                _receive_all(connection, waiting, tally)
        if ending != "destroyed in flight":
            _receive_all(connection, waiting, tally)
        if ending == "client closes":
            connection.end()
            tally.check(connection.close_code == 1000, f"expected 1000, got {connection.close_code}")
        elif ending == "server closes":
            connection.send(END)
            try:
                connection.receive(timeout=LIMIT)
            except ConnectionClosed as error:
                tally.check(error.code == 4001, f"expected the server's 4001, got {error.code}")
            else:
                raise AssertionError("a message that nobody sent")
        else:
            connection.destroy()
    tally[ending] += 1


def _receive_all(connection: Any, waiting: list[tuple[int, str | bytes]], tally: Tally) -> None:
    for number, expected in waiting:
        _compare(tally, number, connection.receive(timeout=LIMIT), expected)
    waiting.clear()


def _compare(tally: Tally, number: int, got: str | bytes, expected: str | bytes) -> None:
    if type(got) is not type(expected) or got != expected:
        raise AssertionError(
            f"message {number}: expected {type(expected).__name__} of {len(expected)} ({expected[:20]!r}), "
            f"got {type(got).__name__} of {len(got)} ({got[:20]!r})"
        )
    tally["messages"] += 1
    tally["bytes"] += len(expected)


def live_wild(port: int, path: str, seed: int, tally: Tally) -> None:
    """One life of a client that follows no rules, and leaves in the middle of anything."""
    generator = random.Random(seed)
    head = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    kinds: dict[str, Callable[[], bytes]] = {
        "half a head": lambda: head[: generator.randint(1, len(head) - 1)],
        "no key": lambda: head.replace(b"Sec-WebSocket-Key", b"X-Key"),
        "gone at once": lambda: head,
        "half a frame": lambda: head + encode_frame(2, b"x" * 50_000, KEY)[: generator.randint(1, 50_000)],
        "half a message": lambda: head + encode_frame(1, b"half", KEY, 0x00),
        "no frames": lambda: head + generator.randbytes(200),
        "a close and more": lambda: head + encode_frame(8, b"\x03\xe8", KEY) + encode_frame(1, b"late", KEY),
    }
    kind = generator.choice(list(kinds))
    with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(kinds[kind]())
            if generator.random() < 0.7 and kind != "half a head":
                sock.recv(2**16)
        if generator.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST instead of FIN
    tally[kind] += 1
