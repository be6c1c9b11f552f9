"""The HTTP phase of an upgrade under uvicorn: the request head, the application's decision, the response.

It ends with the 101, after which the outcome takes over, or with another HTTP response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..connection.adopt import AsyncioTransport
from ..core.handshake.headers import RESPONSE_FIELDS
from ..core.handshake.negotiation import Request, check_request, negotiate, offered_subprotocols
from ..errors import ConnectionClosed, HandshakeError
from ..http.write import write_fields, write_switch
from .denial import Denial, strings
from .log import RequestLog, logger
from .outcomes import Outcome
from .request import early_bytes, read_request

if TYPE_CHECKING:
    from uvicorn.server import ServerState

__all__ = ["Handshake", "Stage"]

# Bytes that a client may send before the 101 until reading is paused.
_MAX_EARLY = 64 * 2**10


class Stage(Enum):
    """The stages of a handshake."""

    HEAD = "waiting for the request head"
    DECIDING = "waiting for the application's decision"
    ANSWERING = "the application is sending an HTTP response"
    ACCEPTED = "the 101 has been sent"
    REFUSED = "an HTTP response has been sent, or the client has disconnected"


@lru_cache(maxsize=8)
def _written(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """The header fields that uvicorn adds to every response, as bytes; they change once a second, with the date."""
    return write_fields(strings(headers))


def _subprotocol_in(headers: list[tuple[str, str]]) -> str | None:
    return next((value for name, value in headers if name.lower() == "sec-websocket-protocol"), None)


class Handshake:
    """One upgrade request until it is answered.

    Args:
        loop: the event loop.
        server_state: uvicorn's, for the header fields that it adds to every response.
        outcome: the outcome of an accept, unless another one is planned.
        accepted: called with the outcome after the accept.

    Attributes:
        log: logs the response, once the request head has been read.
        outcome: the planned outcome of the accept.
        request: the request, once its head has been read.
        stage: the current stage.
        transport: the client's, from ``connection_made`` on.
    """

    # No __dict__: every request has one until it is accepted.
    __slots__ = (
        "_accepted",
        "_connect",
        "_decided",
        "_denial",
        "_early",
        "_key",
        "_loop",
        "_server_state",
        "log",
        "outcome",
        "request",
        "stage",
        "transport",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server_state: ServerState,
        outcome: Outcome,
        accepted: Callable[[Outcome], None],
    ) -> None:
        self._loop = loop
        self._server_state = server_state
        self._accepted = accepted
        self._key = ""
        self._early = b""
        self._denial: Denial | None = None
        # The first message to the application, until it has received it.
        self._connect: dict[str, Any] | None = {"type": "websocket.connect"}
        self._decided: asyncio.Future[None] | None = None
        self.log: RequestLog | None = None
        self.outcome = outcome
        self.request: Request | None = None
        self.stage = Stage.HEAD
        self.transport: asyncio.Transport

    @property
    def connect_received(self) -> bool:
        """Whether the application has received ``websocket.connect``."""
        return self._connect is None

    # --- events from the client --------------------------------------------------------------------------

    def read_head(self, data: bytes) -> tuple[list[tuple[bytes, bytes]], list[str]]:
        """Read and check the request in ``data``, and keep the bytes that follow it.

        Returns:
            the request's header fields, and the subprotocols that it offers.

        Raises:
            HandshakeError: the request must be refused.
        """
        self.request, fields, rest = read_request(self.transport, data)
        self._key = check_request(self.request, self.outcome.settings.origins)
        subprotocols = offered_subprotocols(self.request.headers)
        self.keep_early(rest + early_bytes(self.transport))
        return fields, subprotocols

    def keep_early(self, data: bytes) -> None:
        """Keep bytes that the client sends before the response."""
        self._early += data
        if len(self._early) > _MAX_EARLY:
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        """The client reads the response more slowly than the application writes it."""
        if self._denial is not None:
            self._denial.pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._denial is not None:
            self._denial.resume_writing()

    def connection_lost(self) -> None:
        """The client has disconnected."""
        if self._denial is not None:
            self._denial.connection_lost()
        self._end_as(Stage.REFUSED)

    # --- the application's ASGI messages -------------------------------------------------------------------

    async def receive(self) -> dict[str, Any] | None:
        """The next message to the application; None once a connection has been accepted, which then has it."""
        if self._connect is not None:
            message, self._connect = self._connect, None
            return message
        # Before the response, the client can only disconnect.
        if self.stage in (Stage.DECIDING, Stage.ANSWERING):
            if self._decided is None:
                self._decided = self._loop.create_future()
            await asyncio.shield(self._decided)
        if self.outcome.connection is not None:
            return None
        return {"type": "websocket.disconnect", "code": 1006, "reason": ""}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Handle the application's answer, or a part of it.

        Raises:
            ConnectionClosed: the request is already answered, or the client has disconnected.
            RuntimeError, ValueError: the message is not a valid answer.
        """
        kind = message["type"]
        if self.stage is Stage.DECIDING:
            self._decide(kind, message)
        elif self.stage is Stage.ANSWERING:
            answer = self._answer()
            await answer.body(kind, message)
            if answer.complete:
                self._end_as(Stage.REFUSED)
        else:
            await asyncio.sleep(0)  # an application that retries in a loop must not starve the event loop
            raise ConnectionClosed(1006, f"got {kind} after the connection was refused or handed over")

    def _decide(self, kind: str, message: MutableMapping[str, Any]) -> None:
        assert self.log is not None
        if kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            self.log.answered("403")
            self.refuse(HandshakeError("the application refused the connection", status=403))
        elif kind == "websocket.http.response.start":
            self.log.answered(str(self._answer().start(message)))
            self.stage = Stage.ANSWERING
        else:
            raise RuntimeError(
                "expected ASGI message 'websocket.accept', 'websocket.close' or 'websocket.http.response.start', "
                f"got {kind!r}"
            )

    def _accept(self, message: MutableMapping[str, Any]) -> None:
        assert self.request is not None
        assert self.log is not None
        outcome = self.outcome
        given = strings(message.get("headers") or ())
        # An empty name counts as none, and some applications set the subprotocol as a header field.
        subprotocol = message.get("subprotocol") or _subprotocol_in(given) or None
        agreement, fields = negotiate(
            self.request, self._key, subprotocol=subprotocol, deflate=outcome.settings.deflate
        )
        given = [pair for pair in given if pair[0].lower() not in RESPONSE_FIELDS]
        default = _written(tuple(self._server_state.default_headers))
        response = write_switch(outcome.response_fields(fields), default, write_fields(given) if given else b"")
        if self.transport.is_closing():
            raise ConnectionClosed(1006, "the client disconnected before the accept")
        outcome.carry_out(AsyncioTransport(self.transport), agreement, response, self._early, self.log)
        # A detached connection keeps this object alive, and the request head is by far its largest part.
        self.request = None
        self._early = b""
        self._end_as(Stage.ACCEPTED)
        self._accepted(outcome)
        self.log.answered(outcome.logged_as)

    def finish(self, code: int) -> None:
        """Complete the response after the application has ended with this close code."""
        if self.stage is Stage.DECIDING:
            self.refuse(HandshakeError("the application did not answer the upgrade", status=500))
        elif self.stage is Stage.ANSWERING:
            self._finish_answer(code)

    def _finish_answer(self, code: int) -> None:
        error: HandshakeError | None = None
        if code == 1012:
            error = _shutting_down()
        elif code != 1000:
            error = HandshakeError("the application did not finish its answer", status=500)
        else:
            logger.error("ASGI callable returned without completing response.")
        self.stage = Stage.REFUSED
        self._answer().abandon(error)

    # --- responses of this package -------------------------------------------------------------------------

    def shut_down(self) -> None:
        """Refuse the request, or finish a response in progress, as uvicorn is stopping."""
        if self.stage in (Stage.HEAD, Stage.DECIDING):
            self.refuse_and_log(_shutting_down())
        else:
            self._answer().stop_waiting()

    def refuse_and_log(self, error: HandshakeError) -> None:
        """Refuse with ``error``, and log that this package refused the request."""
        if self.log is not None:
            self.log.refused(error)
        self.refuse(error)

    def refuse(self, error: HandshakeError) -> None:
        """Respond with the status, header fields and body of ``error``."""
        self._end_as(Stage.REFUSED)
        self._answer().refuse(error, "GET" if self.request is None else self.request.method)

    def _answer(self) -> Denial:
        if self._denial is None:
            timeout = self.outcome.settings.limits.close_timeout
            self._denial = Denial(self.transport, self._loop, self._server_state.default_headers, timeout)
        return self._denial

    def _end_as(self, stage: Stage) -> None:
        self.stage = stage
        if self._decided is not None and not self._decided.done():
            self._decided.set_result(None)


def _shutting_down() -> HandshakeError:
    return HandshakeError("the server is shutting down: try again", status=503)
