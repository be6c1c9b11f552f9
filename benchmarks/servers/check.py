"""Check that every contestant, in every setting that it supports, behaves as the benchmark assumes."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import ssl
import time
from collections.abc import Iterator

from websockets.asyncio.client import ClientConnection, connect

from benchmarks.contestants import CONTESTANTS, Contestant, Setting, started

# Seconds for all checks of one server.
LIMIT = 20.0
LARGE = 2**20


def settings(contestant: Contestant) -> Iterator[Setting]:
    """Each event loop, plain and with each other setting on its own."""
    for loop in ("uvloop", "asyncio"):
        if loop in contestant.supports:
            yield Setting(loop)
            if "tls" in contestant.supports:
                yield Setting(loop, tls=True)
            if "deflate" in contestant.supports:
                yield Setting(loop, deflate=True)
            if contestant.kind == "ours":
                yield Setting(loop, pure=True)


def connecting(port: int, setting: Setting, path: str = "/", offer: bool = True) -> connect:
    """Connect a client; it offers compression by default, which only a server configured for it may accept."""
    context = None
    if setting.tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return connect(
        f"{'wss' if setting.tls else 'ws'}://127.0.0.1:{port}{path}",
        ssl=context,
        compression="deflate" if offer else None,
        max_size=2 * LARGE,
        close_timeout=0,  # the limit answers no Close
        proxy=None,
    )


async def echo(port: int, setting: Setting, message: str | bytes) -> bool:
    """Check that a few equal messages are echoed unchanged; return whether they were compressed."""
    async with connecting(port, setting, offer=setting.deflate) as client:
        for _ in range(3):
            await client.send(message)
        for _ in range(3):
            received = await client.recv()
            assert received == message, f"expected {message[:20]!r}, got {received[:20]!r}"
        return bool(client.protocol.extensions)


async def broadcast(port: int, setting: Setting) -> None:
    clients: list[ClientConnection] = [
        await connecting(port, setting, "/broadcast", offer=setting.deflate) for _ in range(3)
    ]
    await asyncio.sleep(0.1)  # a client may have its 101 before the server has added it to its set
    await clients[1].send(b"to all")
    for client in clients:
        assert await client.recv() == b"to all"
    for client in clients:
        await client.close()


async def tried(contestant: Contestant, port: int, setting: Setting) -> list[str]:
    done = []
    if "echo" not in contestant.supports:
        return ["it answers an upgrade"]  # `started` has checked this
    for message in ("grüße", b"\xff\x00bytes", b"\x80" * LARGE, '{"text": 1}, ' * (LARGE // 13)):
        compressed = await echo(port, setting, message)
        assert compressed == setting.deflate, f"expected compression: {setting.deflate}, got {compressed}"
    done.append("text and binary")
    if "broadcast" in contestant.supports:
        await broadcast(port, setting)
        done.append("broadcast")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description="Start each contestant in each setting, and talk to it.")
    parser.add_argument("--only", default="", help="regular expression for names")
    only: str = parser.parse_args().only
    core = min(os.sched_getaffinity(0))
    for contestant in CONTESTANTS.values():
        for setting in settings(contestant):
            words = [setting.loop, *(word for word in ("tls", "deflate", "pure") if getattr(setting, word))]
            if not re.search(only, contestant.name):
                continue
            begin = time.monotonic()
            with started(contestant, setting, core) as server:
                took = time.monotonic() - begin
                done = asyncio.run(asyncio.wait_for(tried(contestant, server.port, setting), LIMIT))
                print(
                    f"{contestant.name:18} {' '.join(words):15} {', '.join(done):27} started in {took:4.1f} s,"
                    f" {len(server.pids)} process, {server.cpu():5.2f} s of CPU, {server.memory() / 2**20:5.1f} MiB",
                    flush=True,
                )
