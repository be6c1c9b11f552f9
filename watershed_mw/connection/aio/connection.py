"""The asyncio flavour on a transport: what an application asks for, and what it waits for.

How the bytes travel is the driver's business (``driver.py``). Calls from other threads are checked
there and then, and carried over to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ...core.payloads import Sendable
from ...core.prepared import PreparedMessage
from ...core.states import State
from ...errors import ConnectionClosed
from ..awaitables import READY, NextTurn, Pending, Wakeup, on_loop
from .api import AsyncConnection
from .driver import SENDS_PER_TURN, AsyncioDriver

try:
    import cython
except ImportError:  # Cython is needed to build the compiled form, never to run this one.
    from ... import _cython as cython

if cython.compiled:
    from cython.cimports.cpython.object import PyObject_GenericSetAttr
    from cython.cimports.cpython.pythread import PyThread_get_thread_ident as get_ident
else:
    from threading import get_ident

__all__ = ["AsyncioConnection"]

_MOST_SENDS = SENDS_PER_TURN  # a number of C's where this is compiled
# Looked up once: a member of an Enum costs more than a call.
_OPEN = State.OPEN


class AsyncioConnection(AsyncioDriver):
    """An :class:`~watershed_mw.AsyncConnection` that owns a transport of an event loop."""

    __slots__ = ("__dict__",)  # for what an application keeps there
    _own: dict[str, Any] | None

    if cython.compiled:
        # An extension type makes its dictionary with the object, and where there is one each call between methods
        # looks for another method in it first: 80 bytes and half a microsecond for each message. So it is made here,
        # when it is needed.

        def __getattr__(self, name: str) -> Any:
            if name == "__dict__":
                if self._own is None:
                    self._own = {}
                return self._own
            if self._own is not None and name in self._own:
                return self._own[name]
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

        def __setattr__(self, name: str, value: Any) -> None:
            try:
                PyObject_GenericSetAttr(self, name, value)
            except AttributeError:
                if any(name in vars(kind) for kind in type(self).__mro__):
                    raise  # it cannot be set
                self.__dict__[name] = value

        def __delattr__(self, name: str) -> None:
            if self._own is not None and name in self._own:
                del self._own[name]
            else:
                delete_attribute(self, name, cython.NULL)  # type: ignore[name-defined]  # noqa: F821

    async def receive(self, timeout: float | None = None) -> str | bytes:  # noqa: ASYNC109  # both flavours alike
        """As the base class says; a message that is there is returned at once."""
        if get_ident() != self._thread:
            message: str | bytes = await self._on_own_loop(lambda: self.receive(timeout))
            return message
        if self._push:
            self._check_pull()
        if timeout is not None:
            async with asyncio.timeout(timeout):
                await self._expect_message()
        elif self._wakeup.state:
            await self._take_turn()
        while self._queue.count == 0:
            if self._is_over():
                await self._pause()
                raise self._closed_error()
            await self._expect_wakeup()
        return self._next_message()

    async def __anext__(self) -> str | bytes:
        if get_ident() != self._thread:
            return await AsyncConnection.__anext__(self)
        # Not by way of receive(), as most connections are waiting here, and each would keep a second coroutine.
        if self._push:
            self._check_pull()
        if self._wakeup.state:
            await self._take_turn()
        while self._queue.count == 0:
            if self._is_over():
                await self._pause()
                raise StopAsyncIteration
            await self._expect_wakeup()
        return self._next_message()

    async def _expect_message(self) -> None:
        """Wait for this task's turn, and for a message or the end, in the middle of :meth:`receive`."""
        if self._wakeup.state:
            await self._take_turn()
        while self._queue.count == 0 and not self._is_over():
            await self._expect_wakeup()

    async def _take_turn(self) -> None:
        """Wait until the tasks that receive already have got a message each."""
        if self._wakeup.waiter_was_cancelled():
            self._wakeup = Wakeup(self._loop)
        else:
            await self._wakeup.take_turn()

    def _is_over(self) -> bool:
        """Whether no message can come any more. To ask for more is to have replied to what came before."""
        if self._core.state is _OPEN:
            return False
        self._hand_over()
        if not self._core.ended:
            return False
        self._wakeup.pass_on()  # so that every task hears of it
        return True

    def _expect_wakeup(self) -> Wakeup:
        """What to wait for, when it is this task's turn: that a message has come, or the end."""
        if self._flush_set:
            self._flush_and_report()  # it has said what it had to say
        return self._wakeup

    def _next_message(self) -> str | bytes:
        if self._wakeup.line is not None:
            self._wakeup.pass_on()
        event = self._queue.take()
        message = event if isinstance(event, (str, bytes)) else self._take_message_after(event)
        if not self._reading:  # else its turn ends with it: to stop and begin again within costs two system calls
            self._update_reading()
        return message

    def send(self, data: Sendable) -> Awaitable[None]:
        """As the base class says; a lone reply leaves at once, what follows in the same turn of the loop together."""
        if get_ident() != self._thread:
            return self._send_from_thread(data)
        if not self._core.sending:
            return self._send_too_late(data)
        # Nearly everything is exactly this, and not traced.
        if type(data) is str and self._trace is None:
            self._core.send_text(data)
        elif type(data) is bytes and self._trace is None:
            self._core.send_binary(data)
        else:
            self._queue_message(data)
        return self._sent()

    def _send_too_late(self, data: Sendable) -> Awaitable[None]:
        try:
            self._queue_message(data)
        except ConnectionClosed as error:
            return self._refuse(error)
        raise AssertionError("a message was sent on a connection that has ended")

    def _sent(self) -> Awaitable[None]:
        """One thing more is to be written: what the application may await."""
        self._sends += 1
        self._wrote()
        if self._writing_paused:
            return Pending(self._drained)
        return READY if self._sends < _MOST_SENDS else NextTurn()

    def _send_prepared(self, shared: PreparedMessage) -> None:
        if get_ident() != self._thread:
            self._send_from_thread(shared.message)
            return
        core = self._core
        if not core.sending:
            return
        frame = core.send_prepared(shared)
        if self._trace is not None:
            self._trace("send-text" if isinstance(shared.message, str) else "send-binary", self, shared.payload)
        if frame:
            # As a lone reply, and past the queue: that would take as long as all else here.
            self._write(frame)
            if self._writing_paused:
                self._check_unsent()
        elif not (self._reading or self._flush_set):
            self._flush()

    def ping(self, data: Sendable = b"") -> Awaitable[None]:
        """As the base class says."""
        if get_ident() != self._thread:
            return self._ping_from_thread(data)
        try:
            self._queue_ping(data)
        except ConnectionClosed as error:
            return self._refuse(error)
        return self._sent()

    def end(self, reason: str = "", *, code: int = 1000) -> Awaitable[None]:
        """As the base class says."""
        if get_ident() != self._thread:
            return self._end_from_thread(reason, code)
        self._queue_close(code, reason)
        self._advance_and_apply_state()
        return Pending(self.wait_closed)

    def destroy(self) -> None:
        """As the base class says."""
        if get_ident() != self._thread:
            self._from_thread(self.destroy)
            return
        self._drop()

    async def run(self) -> tuple[int, str]:
        """As the base class says."""
        self._push = self._running = self._ran = True
        self._advance_and_apply_state()
        try:
            if self._finished():
                await self._pause()
            while not self._finished():
                await self._expect_close()
        finally:
            self._running = False
        if self._handler_error is not None:
            raise self._handler_error
        return self.close_code or 1006, self.close_reason or ""

    async def wait_closed(self) -> None:
        """As the base class says."""
        if get_ident() != self._thread:
            await self._on_own_loop(self.wait_closed)
            return
        self._ran = True
        if self._lost:
            await self._pause()
        while not self._lost or self._core.backlog:
            await self._expect_close()

    # --- waiting -----------------------------------------------------------------------------------------

    async def _drained(self) -> None:
        while self._writing_paused and not self._lost and not self._core.ended:
            await self._expect_drain()

    async def _on_own_loop(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return await on_loop(self._loop, call)

    def _on_own_thread(self) -> bool:
        return bool(get_ident() == self._thread)

    def _soon(self, call: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(call)
