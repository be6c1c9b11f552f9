"""A Jupyter-like kernel for jupyter_like_proxy.py: python examples/jupyter_like_kernel.py [port].

ws://.../api/kernels/{kernel}/channels speaks v1.kernel.websocket.jupyter.org: a BINARY message is a table of
offsets, followed by the name of a channel and the parts of a kernel message.
"""

import json
import struct
import sys
from itertools import accumulate, pairwise
from typing import Any

import uvicorn
from starlette.applications import Starlette

from watershed_mw import AsyncConnection
from watershed_mw.starlette import WatershedRoute

PROTOCOL = "v1.kernel.websocket.jupyter.org"


def pack(channel: str, *parts: dict[str, Any]) -> bytes:
    pieces = [channel.encode(), *(json.dumps(part).encode() for part in parts)]
    count = len(pieces) + 1  # offsets: the start of each piece, and the end of the last one
    offsets = accumulate(map(len, pieces), initial=8 * (1 + count))
    return struct.pack(f"<{1 + count}Q", count, *offsets) + b"".join(pieces)


def unpack(message: bytes) -> tuple[str, list[dict[str, Any]]]:
    (count,) = struct.unpack_from("<Q", message)
    offsets = struct.unpack_from(f"<{count}Q", message, 8)
    channel, *parts = (message[start:end] for start, end in pairwise(offsets))
    return channel.decode(), [json.loads(part) for part in parts]


async def channels(conn: AsyncConnection) -> None:
    count = 0
    async for message in conn:
        if conn.protocol != PROTOCOL or not isinstance(message, bytes):
            await conn.end(f"expected BINARY messages of {PROTOCOL}", code=1003)
            break
        _, (header, _, _, content) = unpack(message)
        if header["msg_type"] == "execute_request":
            count += 1
            result = {"execution_count": count, "data": {"text/plain": content["code"].upper()}}
            await conn.send(pack("iopub", {"msg_type": "execute_result"}, header, {}, result))


app = Starlette(routes=[WatershedRoute("/api/kernels/{kernel}/channels", channels, protocols=[PROTOCOL])])

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8888
    uvicorn.run(app, port=port, ws="watershed_mw.uvicorn:WatershedProtocol")
