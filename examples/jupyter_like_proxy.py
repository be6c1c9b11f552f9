"""A hub in front of a kernel or a Jupyter server: python examples/jupyter_like_proxy.py [port [port of the kernel]].

ws://.../user/ann/api/kernels/... is forwarded without /user/ann. The client offers subprotocols, the kernel picks one
or refuses, and its response comes back through the hub unchanged.
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from watershed_mw.proxy import WebSocketProxy

KERNEL = int(sys.argv[2]) if len(sys.argv) > 2 else 8888

app = Starlette(routes=[Mount("/user/{name}", WebSocketProxy(f"ws://127.0.0.1:{KERNEL}", idle_timeout=None))])

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    uvicorn.run(app, port=port, ws="watershed_mw.uvicorn:WatershedProtocol")
