"""The memory of a separate server process after many connections."""

from __future__ import annotations

import json
import socket
import sys
import time

import pytest
from websockets.frames import Opcode

from tests.support import LIMIT
from tests.support.peers import close, head, text
from tests.support.programs import Program

pytestmark = pytest.mark.programs

MIB = 2**20
SERVER = """
import asyncio, gc, json, os, socket, sys, threading
import uvicorn
from watershed_mw import WatershedASGI, live_connections

kind, http, loop, ws = sys.argv[1:]

async def page(scope, receive, send):
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    body = json.dumps({
        "resident": resident, "descriptors": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()), "connections": len(live_connections()),
    }).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})

async def plain(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})

async def ours(scope, receive, send):
    connection = await scope["watershed"].accept()
    async for message in connection:
        await connection.send(message)

middleware = WatershedASGI(ours)

async def app(scope, receive, send):
    serve = page if scope["type"] == "http" else plain if kind == "plain" else middleware
    await serve(scope, receive, send)

listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
config = uvicorn.Config(app, http=http, loop=loop, ws=ws, lifespan="off", log_level="warning")
uvicorn.Server(config).run(sockets=[listener])
"""


def connect(port: int, count: int) -> None:
    """Connect and echo one message, many times; every second client vanishes."""
    request, message, end = head("/", Sec_WebSocket_Extensions="permessage-deflate"), text("hello"), close()
    for number in range(count):
        with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
            sock.sendall(request)
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += sock.recv(4096)
            sock.sendall(message)
            assert sock.recv(4096)[0] & 0x0F == Opcode.TEXT
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            else:
                sock.sendall(end)
                while sock.recv(4096):
                    pass


def figures(port: int) -> dict[str, int]:
    with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        answer = b""
        while chunk := sock.recv(4096):
            answer += chunk
    found: dict[str, int] = json.loads(answer[answer.index(b"{") : answer.rindex(b"}") + 1])
    return found


def settled(port: int) -> dict[str, int]:
    """The figures once no connection is left, except uvicorn's own task and that of this request."""
    deadline = time.monotonic() + LIMIT
    while (found := figures(port))["connections"] or found["tasks"] > 2:
        assert time.monotonic() < deadline, found
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of memory and descriptors")
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "kind, http, loop, ws",
    [
        ("plain", "h11", "asyncio", "watershed_mw.uvicorn:WatershedProtocol"),
        ("plain", "httptools", "uvloop", "watershed_mw.uvicorn:WatershedProtocol"),
        ("ours", "h11", "asyncio", "watershed_mw.uvicorn:WatershedProtocol"),
        ("ours", "httptools", "uvloop", "watershed_mw.uvicorn:WatershedProtocol"),
        ("ours", "h11", "asyncio", "websockets-sansio"),
    ],
    ids=["plain-h11", "plain-httptools", "native-h11", "native-httptools", "portable"],
)
def test_1000_connections_leave_no_memory_behind(kind: str, http: str, loop: str, ws: str) -> None:
    with Program(sys.executable, "-c", SERVER, kind, http, loop, ws) as program:
        port = program.port()
        connect(port, 1000)  # until every cache and pool has its size
        rounds = [settled(port)]
        # An allocator may need one more round to reach its size; a leak appears in every round.
        while len(rounds) == 1 or (len(rounds) < 4 and grown(rounds) >= MIB // 2):
            connect(port, 1000)
            rounds.append(settled(port))
        output = program.output
    assert grown(rounds) < MIB // 2, rounds
    for what in ("descriptors", "threads", "tasks", "connections"):
        assert rounds[-1][what] == rounds[0][what], rounds
    assert "Traceback" not in output, output


def grown(rounds: list[dict[str, int]]) -> int:
    """The bytes by which the last 1000 connections made the process grow."""
    return rounds[-1]["resident"] - rounds[-2]["resident"]
