"""picows' own server with callbacks; a broadcast is a loop, because picows has no function for it.

The echo is the cheapest that its API allows: it sends the payload from the receive buffer, with the same opcode. Text
is not decoded, and therefore not validated.
"""

from __future__ import annotations

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from .serving import BACKLOG, MAX_SIZE, Place, serve

MESSAGES = (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION)
members: set[WSTransport] = set()


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type in MESSAGES:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview(), frame.fin)
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()


class Broadcast(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        members.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        members.discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type in MESSAGES:
            payload = frame.get_payload_as_memoryview()
            for member in members:
                member.send(frame.msg_type, payload, frame.fin)
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()


def listener(request: WSUpgradeRequest) -> WSListener:
    return Broadcast() if request.path == b"/broadcast" else Echo()


async def server(place: Place) -> None:
    listening = await ws_create_server(
        *(listener, "127.0.0.1", place.port), max_frame_size=MAX_SIZE, ssl=place.tls, backlog=BACKLOG
    )
    await listening.serve_forever()


if __name__ == "__main__":
    serve(server)
