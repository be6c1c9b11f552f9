"""``watershed-mw connect`` on a terminal: a prompt with a history, and received messages above it.

A line is sent as TEXT, unless it begins with a slash: then it is a command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TextIO, cast

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.patch_stdout import StdoutProxy
from rich.console import Console

from ..connection.aio.api import AsyncConnection
from ..errors import ConnectionClosed, WatershedError
from .dialogue import Dialogue, Order, plain
from .output import dump, escape, shown

__all__ = ["Terminal", "history"]

_HELP: Final = """\
  TEXT                     send a TEXT message
  //TEXT                   send one that begins with a slash
  /text @FILE              send a file as a TEXT message
  /binary HEX or @FILE     send a BINARY message
  /ping [TEXT]             send a PING, and show its PONG's round-trip time
  /close [CODE [REASON]]   close the connection, by default with 1000
  /help                    show this
  Ctrl-D, Ctrl-C           close the connection with 1000"""
# Maximum PINGs whose times are kept: a PONG may never arrive.
_MAX_PINGS: Final = 64


def history() -> History:
    """The history of typed lines, in a file that only the user can read, or in memory if it cannot be created.

    It is ``$XDG_STATE_HOME/watershed-mw/history``, by default under ``~/.local/state``.
    """
    try:
        base = os.environ.get("XDG_STATE_HOME", "")
        place = (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state") / "watershed-mw"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = place / "history"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        return InMemoryHistory()
    return FileHistory(str(file))


class Terminal(Dialogue):
    """The prompt for a person."""

    def __init__(self, order: Order, console: Console) -> None:
        super().__init__(order, console)
        self._session: PromptSession[str] = PromptSession("> ", history=history())
        self._pings: dict[bytes, float] = {}
        self._commands: dict[str, Callable[[AsyncConnection, str], Any]] = {
            "/text": self._text,
            "/binary": self._binary,
            "/ping": self._ping,
            "/close": self._close,
            "/help": self._help,
        }

    async def run(self) -> int:
        """As :meth:`Dialogue.run`; output appears above the prompt."""
        # Raw, for the colours; everything else is escaped. patch_stdout() would write only five times a second.
        with StdoutProxy(sleep_between_writes=0.05, raw=True) as proxy, contextlib.redirect_stdout(cast(TextIO, proxy)):
            return await super().run()

    async def converse(self, connection: AsyncConnection) -> None:
        """As :meth:`Dialogue.converse`."""
        agreed = f" (subprotocol {escape(connection.protocol)})" if connection.protocol else ""
        self.show(f"connected to {plain(self.order.url)}{agreed}; /help shows the commands", "green")
        connection.on("ping", lambda data: self.show(f"< PING {_quoted(data)}", "magenta"))
        connection.on("pong", self._show_pong)
        receiving = asyncio.create_task(self._receive(connection))
        typing = asyncio.create_task(self._type(connection))
        try:
            await asyncio.wait({typing, receiving}, return_when=asyncio.FIRST_COMPLETED)
            typing.cancel()  # restores the terminal
            await asyncio.wait({typing})
            await receiving
        finally:
            typing.cancel()
            receiving.cancel()
            await asyncio.wait({typing, receiving})
        if not typing.cancelled():
            typing.result()

    async def _type(self, connection: AsyncConnection) -> None:
        """Process lines, and close the connection after the last one."""
        try:
            while not self.over:
                line = await self._session.prompt_async(handle_sigint=False)
                await self._run_command(connection, line)
        except (EOFError, KeyboardInterrupt):
            self.over = True
        finally:
            connection.end()

    def leave(self, connection: AsyncConnection) -> None:
        """As :meth:`Dialogue.leave`. Ctrl-C is a signal only while output is written, and a key otherwise."""
        if self.signal == signal.SIGINT:
            self.signal = 0
        super().leave(connection)

    async def _receive(self, connection: AsyncConnection) -> None:
        async for message in connection:
            if isinstance(message, str):
                self.show(f"< {shown(message)}", "cyan")
            else:
                self.show("\n".join([f"< BINARY, {len(message):,} bytes", *dump(message)]), "blue")

    def _show_pong(self, data: bytes) -> None:
        sent = self._pings.pop(data, None)
        if sent is not None:
            self.show(f"< PONG {_quoted(data)} after {(time.perf_counter() - sent) * 1000:.1f} ms", "magenta")
        elif self.order.verbose:  # a PONG of the keepalive
            self.show(f"< PONG {_quoted(data)}", "dim")

    # --- commands ----------------------------------------------------------------------------------------

    async def _run_command(self, connection: AsyncConnection, line: str) -> None:
        try:
            if line.startswith("/") and not line.startswith("//"):
                name, _, rest = line.partition(" ")
                command = self._commands.get(name)
                if command is None:
                    expected = ", ".join(self._commands)
                    raise ValueError(f"expected one of {expected}, or // for a text with a slash; got {escape(name)}")
                await command(connection, rest.strip())
            elif line:
                await connection.send(line.removeprefix("/"))
        except ConnectionClosed:
            pass  # reported elsewhere
        except (ValueError, OSError, WatershedError) as error:
            self.show(escape(str(error)), "red")

    async def _text(self, connection: AsyncConnection, rest: str) -> None:
        if not rest.startswith("@"):
            raise ValueError("expected /text @FILE; a line without a slash is sent as TEXT")
        await connection.send((await _contents(rest)).decode())

    async def _binary(self, connection: AsyncConnection, rest: str) -> None:
        if not rest:
            raise ValueError("expected /binary HEX or /binary @FILE")
        await connection.send(await _contents(rest) if rest.startswith("@") else bytes.fromhex(rest))

    async def _ping(self, connection: AsyncConnection, rest: str) -> None:
        data = rest.encode()
        await connection.ping(data)
        if len(self._pings) < _MAX_PINGS:
            self._pings[data] = time.perf_counter()

    async def _close(self, connection: AsyncConnection, rest: str) -> None:
        code, _, reason = rest.partition(" ")
        if code and not code.isdecimal():
            raise ValueError("expected /close [CODE [REASON]] with a code from 1000 to 4999")
        connection.end(reason.strip(), code=int(code or 1000))
        self.over = True

    async def _help(self, connection: AsyncConnection, rest: str) -> None:
        self.show(_HELP)


async def _contents(argument: str) -> bytes:
    """The contents of ``@FILE``, which may be quoted and may begin with ``~``."""
    [name, *more] = shlex.split(argument[1:]) or [""]
    if not name or more:
        raise ValueError("expected one file after the @, quoted if its name has spaces")
    return await asyncio.to_thread(_read, name)


def _read(name: str) -> bytes:
    return Path(name).expanduser().read_bytes()


def _quoted(data: bytes) -> str:
    return repr(escape(data.decode("utf-8", "backslashreplace"))) if data else "(empty)"
