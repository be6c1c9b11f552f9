"""Talk to `WatershedProtocol` on the uvicorn that is first on the path; as a program it exits with status 0."""

from __future__ import annotations

import sys

import uvicorn

from tests.support.asgi_servers_app import application
from tests.support.peers import Peer, close, dial, head, text
from tests.support.threaded_servers import UVICORN_CLASS, Uvicorn
from watershed_mw.uvicorn import WatershedProtocol


def main(version: str) -> None:
    assert uvicorn.__version__ == version, uvicorn.__file__
    # Before 0.36 uvicorn accepts third-party classes only as objects, from Python.
    named = tuple(map(int, version.split(".")[:2])) >= (0, 36)
    for http in ("h11", "httptools"):
        with Uvicorn(application, http=http, lifespan="on", ws=UVICORN_CLASS if named else WatershedProtocol) as server:
            for way in ("/plain/echo", "/echo"):
                with dial(server.port, way, protocols=["chat.v1"]) as client:
                    assert client.subprotocol == "chat.v1"
                    client.send("Grüße")
                    assert client.recv(5) == "Grüße"
                    client.send(b"\0" * 70_000)
                    assert client.recv(5) == b"\0" * 70_000
            for way in ("/plain/deny", "/reject"):
                with Peer(server.port) as peer:
                    peer.send(head(way))
                    answer = peer.refusal()
                    assert (answer.status, answer["x-app"], answer.body) == (402, "yes", b"pay first"), answer
            for way in ("/plain/close", "/close"):
                with Peer(server.port) as peer:
                    peer.open(way)
                    assert peer.text() == "x" * 200_000
                    assert peer.close() == (4001, "bye")
                    peer.send(close(4001))
                    peer.end()
            with Peer(server.port) as early:
                early.open_with(head("/plain/echo") + text("early"))
                assert early.text() == "early"
                server.begin_stop()
                assert early.close()[0] == 1012
                early.send(close(1012))
                early.end()


if __name__ == "__main__":
    main(sys.argv[1])
