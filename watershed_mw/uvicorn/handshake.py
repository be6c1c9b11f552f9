"""The HTTP phase of an upgrade under uvicorn: the request head, the application's decision, the answer.

It ends with the accept, whose outcome goes on without it, or with an HTTP response instead of the 101.
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

# What a client may send before it has the 101; more of it waits in the kernel.
_MAX_EARLY = 64 * 2**10


class Stage(Enum):
    """How far a handshake is."""

    HEAD = "the request head is awaited"
    DECIDING = "the application decides"
    ANSWERING = "the application answers with an HTTP response"
    ACCEPTED = "the 101 has been sent"
    REFUSED = "an HTTP response has been sent, or the client has gone"


@lru_cache(maxsize=8)
def _written(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """What uvicorn adds to every response, as bytes; it changes once a second, with the date."""
    return write_fields(strings(headers))


def _subprotocol_in(headers: list[tuple[str, str]]) -> str | None:
    return next((value for name, value in headers if name.lower() == "sec-websocket-protocol"), None)


class Handshake:
    """One upgrade request until it is answered.

    Args:
        loop: the event loop.
        server_state: uvicorn's, for the fields that it adds to every response.
        log: where the answer is logged.
        outcome: what an accept makes, unless another plan is made.
        accepted: called with the outcome once there is one.

    Attributes:
        outcome: what the accept makes.
        request: the request, once its head has been read.
        stage: how far it is.
        transport: the client's, from ``connection_made`` on.
    """

    # One of these is there for each request that has not been accepted.
    __slots__ = (
        "_accepted",
        "_connect",
        "_decided",
        "_denial",
        "_early",
        "_key",
        "_log",
        "_loop",
        "_server_state",
        "outcome",
        "request",
        "stage",
        "transport",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server_state: ServerState,
        log: RequestLog,
        outcome: Outcome,
        accepted: Callable[[Outcome], None],
    ) -> None:
        self._loop = loop
        self._server_state = server_state
        self._log = log
        self._accepted = accepted
        self._key = ""
        self._early = b""
        self._denial: Denial | None = None
        # The first message to the application, until it has received it.
        self._connect: dict[str, Any] | None = {"type": "websocket.connect"}
        self._decided: asyncio.Future[None] | None = None
        self.outcome = outcome
        self.request: Request | None = None
        self.stage = Stage.HEAD
        self.transport: asyncio.Transport

    @property
    def connect_received(self) -> bool:
        """Whether the application has received ``websocket.connect``."""
        return self._connect is None

    # --- the client's part -------------------------------------------------------------------------------

    def read_head(self, data: bytes) -> tuple[list[tuple[bytes, bytes]], list[str]]:
        """Read and check the request in ``data``; what follows it is kept.

        Returns:
            the request's header fields, and the subprotocols that it offers.

        Raises:
            HandshakeError: it is to be refused.
        """
        self.request, fields, rest = read_request(self.transport, data)
        self._key = check_request(self.request, self.outcome.settings.origins)
        subprotocols = offered_subprotocols(self.request.headers)
        self.keep_early(rest + early_bytes(self.transport))
        return fields, subprotocols

    def keep_early(self, data: bytes) -> None:
        """Keep what the client sends before it has its answer."""
        self._early += data
        if len(self._early) > _MAX_EARLY:
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        """The client reads its answer slower than the application writes it."""
        if self._denial is not None:
            self._denial.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        if self._denial is not None:
            self._denial.resume_writing()

    def connection_lost(self) -> None:
        """The client has gone."""
        if self._denial is not None:
            self._denial.connection_lost()
        self._end_as(Stage.REFUSED)

    # --- the application's part, in ASGI messages ----------------------------------------------------------

    async def receive(self) -> dict[str, Any] | None:
        """The next message to the application; None once there is a connection that has it."""
        if self._connect is not None:
            message, self._connect = self._connect, None
            return message
        # Until the answer, the client can only leave.
        if self.stage in (Stage.DECIDING, Stage.ANSWERING):
            if self._decided is None:
                self._decided = self._loop.create_future()
            await asyncio.shield(self._decided)
        if self.outcome.connection is not None:
            return None
        return {"type": "websocket.disconnect", "code": 1006, "reason": ""}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Take the application's answer, or a part of it.

        Raises:
            ConnectionClosed: it has been answered already, or the client has gone.
            RuntimeError, ValueError: that is no answer.
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
            await asyncio.sleep(0)  # an application that asks again and again must not keep the event loop
            raise ConnectionClosed(1006, f"{kind} came after the connection was refused or handed over")

    def _decide(self, kind: str, message: MutableMapping[str, Any]) -> None:
        if kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            self._log.answered("403")
            self.refuse(HandshakeError("the application refused the connection", status=403))
        elif kind == "websocket.http.response.start":
            self._log.answered(str(self._answer().start(message)))
            self.stage = Stage.ANSWERING
        else:
            raise RuntimeError(
                "expected ASGI message 'websocket.accept', 'websocket.close' or 'websocket.http.response.start', "
                f"got {kind!r}"
            )

    def _accept(self, message: MutableMapping[str, Any]) -> None:
        assert self.request is not None
        outcome = self.outcome
        given = strings(message.get("headers") or ())
        # An empty name is none, and some applications give it as a header field.
        subprotocol = message.get("subprotocol") or _subprotocol_in(given) or None
        agreement, fields = negotiate(
            self.request, self._key, subprotocol=subprotocol, deflate=outcome.settings.deflate
        )
        given = [pair for pair in given if pair[0].lower() not in RESPONSE_FIELDS]
        default = _written(tuple(self._server_state.default_headers))
        response = write_switch(outcome.response_fields(fields), default, write_fields(given) if given else b"")
        if self.transport.is_closing():
            raise ConnectionClosed(1006, "the client has gone before the accept")
        outcome.carry_out(AsyncioTransport(self.transport), agreement, response, self._early, self._log)
        # A detached connection keeps this object: a request head is several times as large as the rest of it.
        self.request = None
        self._early = b""
        self._end_as(Stage.ACCEPTED)
        self._accepted(outcome)
        self._log.answered(outcome.logged_as)

    def finish(self, code: int) -> None:
        """Answer for the application, which has ended with this close code and may have begun an answer."""
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

    # --- answers of this package ---------------------------------------------------------------------------

    def shut_down(self) -> None:
        """Refuse the request, as uvicorn is stopping, or give its answer no more time than that needs."""
        if self.stage in (Stage.HEAD, Stage.DECIDING):
            self.refuse_and_log(_shutting_down())
        else:
            self._answer().stop_waiting()

    def refuse_and_log(self, error: HandshakeError) -> None:
        """Answer with what ``error`` says, on this package's own account."""
        self._log.refused(error)
        self.refuse(error)

    def refuse(self, error: HandshakeError) -> None:
        """Answer with what ``error`` says."""
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
