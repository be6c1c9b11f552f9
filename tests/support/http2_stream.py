"""A WebSocket over HTTP/2, from the client's side."""

from __future__ import annotations

import socket
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.settings


class Stream:
    """One WebSocket over HTTP/2 (RFC 8441), without TLS, with the h2 package."""

    def __init__(self, sock: socket.socket, port: int, path: str) -> None:
        self._sock = sock
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self._offered = False
        self.answer: dict[bytes, bytes] = {}
        self.data = b""
        self.over = False
        self._http.initiate_connection()
        self._flush()
        self._until(lambda: self._offered)
        fields = {
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": "http",
            ":authority": f"127.0.0.1:{port}",
            ":path": path,
            "sec-websocket-version": "13",
            "sec-websocket-protocol": "chat.v1",
        }
        self._http.send_headers(1, list(fields.items()))
        self._flush()
        self._until(lambda: self.answer)

    def send(self, data: bytes) -> None:
        self._http.send_data(1, data)
        self._flush()

    def receive(self, expected: bytes) -> None:
        """Wait for exactly these bytes."""
        self._until(lambda: len(self.data) >= len(expected))
        data, self.data = self.data[: len(expected)], self.data[len(expected) :]
        assert data == expected

    def end(self) -> bytes:
        """Wait for the end of the stream; return the remaining bytes."""
        self._until(lambda: self.over)
        return self.data

    def _flush(self) -> None:
        self._sock.sendall(self._http.data_to_send())

    def _until(self, condition: Callable[[], object]) -> None:
        while not condition():
            assert not self.over, f"the stream ended after {self.answer} {self.data!r}"
            received = self._sock.recv(65536)
            assert received, f"the connection ended after {self.answer} {self.data!r}"
            for event in self._http.receive_data(received):
                if isinstance(event, h2.events.RemoteSettingsChanged):
                    change = event.changed_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL)
                    self._offered = change is not None and change.new_value == 1
                elif isinstance(event, h2.events.ResponseReceived):
                    self.answer = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    self.data += event.data
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    self.over = True
            self._flush()
