"""The raw proxy in front of an echo, both served by one `uvicorn --ws watershed_mw.uvicorn:WatershedProtocol`.

Every path except the echo's is forwarded to the echo. If the proxy could not relay raw bytes, it would refuse.
"""

from watershed_mw.proxy import ProxyRequest, WebSocketProxy

from .asgi import Message, Receive, Send
from .asgi import application as echo

_ECHO = "/echo"


def upstream(request: ProxyRequest) -> str:
    """The echo, at the address where this request arrived."""
    assert request.scope is not None
    return f"ws://127.0.0.1:{request.scope['server'][1]}{_ECHO}"


proxy = WebSocketProxy(upstream, mode="raw")


async def application(scope: Message, receive: Receive, send: Send) -> None:
    """Serve both."""
    to_proxy = scope["type"] == "websocket" and scope["path"] != _ECHO
    await (proxy if to_proxy else echo)(scope, receive, send)
