"""Happy Eyeballs (RFC 8305): connect to whichever of a name's addresses answers first, for both flavours.

A name often has an address of each family, one of which is unreachable (broken IPv6). Addresses are tried in turn, the
families alternating, each a quarter of a second after the one before or as soon as that one has failed. The first to
connect wins, and every other attempt is closed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Collection, Iterable
from itertools import zip_longest
from typing import Any, Final, TypeAlias, cast

__all__ = [
    "Address",
    "connect",
    "connect_blocking",
    "connect_first",
    "connect_first_blocking",
    "resolve",
    "resolve_blocking",
]

Address: TypeAlias = "tuple[int, Any]"
"""An address family, and an address as ``socket.connect`` takes it."""

# Section 5: "Connection Attempt Delay ... a recommended value of 250 milliseconds".
DELAY: Final = 0.25
_IN_PROGRESS = frozenset({0, errno.EINPROGRESS, errno.EWOULDBLOCK})


async def connect(host: str, port: int) -> socket.socket:
    """A non-blocking socket that is connected to a host, given by name or address.

    Raises:
        OSError: no address answers; the error names the failure of each.
        UnicodeError: not a valid host name.
    """
    return await connect_first(await resolve(host, port))


def connect_blocking(host: str, port: int, deadline: float | None) -> socket.socket:
    """As :func:`connect`, with a ``deadline`` of ``time.monotonic()``, which name resolution may exceed.

    Raises:
        TimeoutError: no address answered in time.
    """
    return connect_first_blocking(resolve_blocking(host, port), deadline)


# --- names --------------------------------------------------------------------------------------------------


async def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host, given by name or address, in the order in which to try them.

    Raises:
        OSError: the host has none (``socket.gaierror``).
        UnicodeError: not a valid host name.
    """
    try:
        return _resolved(host, port, socket.AI_NUMERICHOST)  # sends no DNS query, so it cannot block
    except socket.gaierror:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return _in_turn(infos)


def resolve_blocking(host: str, port: int) -> list[Address]:
    """As :func:`resolve`."""
    return _resolved(host, port, 0)


def _resolved(host: str, port: int, flags: int) -> list[Address]:
    return _in_turn(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))


def _in_turn(infos: Iterable[Any]) -> list[Address]:
    """Section 4: the families alternate, beginning with that of the first address; each keeps its own order."""
    families: dict[int, list[Address]] = {}
    for family, _, _, _, address in infos:
        known = families.setdefault(family, [])
        if (family, address) not in known:
            known.append((family, address))
    return [each for group in zip_longest(*families.values()) for each in group if each is not None]


class _Failures:
    """The addresses that failed, each with its error."""

    def __init__(self) -> None:
        self._errors: list[tuple[Address, OSError]] = []

    def add(self, address: Address, error: OSError) -> None:
        """Record a failure."""
        self._errors.append((address, error))

    def __str__(self) -> str:
        return "; ".join(
            f"{shown(address)}: {os.strerror(error.errno) if error.errno else error}" for address, error in self._errors
        )

    def error(self) -> OSError:
        """All failures as one error, of the same class as the last."""
        if not self._errors:
            return OSError("expected addresses to connect to, got none")
        last = self._errors[-1][1]
        if len(self._errors) == 1:
            return last
        # The number selects the subclass of OSError, such as ConnectionRefusedError.
        return OSError(last.errno, f"no address answers: {self}") if last.errno else OSError(str(self))


def shown(address: Address) -> str:
    """An address as ``host:port``."""
    host, port = address[1][:2]
    return f"[{host}]:{port}" if address[0] == socket.AF_INET6 else f"{host}:{port}"


def _new_socket(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


# --- asyncio ------------------------------------------------------------------------------------------------


async def connect_first(addresses: list[Address]) -> socket.socket:
    """A non-blocking socket that is connected to the first of these addresses to accept.

    Raises:
        OSError: all of them failed; the error names each failure.
    """
    if len(addresses) == 1:
        return await _attempt(addresses[0])  # saves a task
    loop = asyncio.get_running_loop()
    waiting = deque(addresses)
    attempts: dict[asyncio.Task[socket.socket], Address] = {}
    failures = _Failures()
    winner: socket.socket | None = None
    try:
        while winner is None and (waiting or attempts):
            if waiting:
                address = waiting.popleft()
                attempts[loop.create_task(_attempt(address))] = address
            pause = DELAY if waiting else None
            done, _ = await asyncio.wait(attempts, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None and winner is None:
                    winner = task.result()
                elif isinstance(error, OSError):
                    failures.add(attempts[task], error)
                elif error is not None:
                    raise error
                else:
                    continue  # it connected too late, and is closed below
                del attempts[task]
    finally:
        await _cancel(attempts, winner)
    if winner is None:
        raise failures.error()
    return winner


async def _cancel(attempts: Collection[asyncio.Task[socket.socket]], winner: socket.socket | None) -> None:
    for task in attempts:
        task.add_done_callback(_close_late)
        task.cancel()
    if attempts:
        try:
            await asyncio.wait(attempts)
        except BaseException:
            if winner is not None:
                winner.close()
            raise


async def _attempt(address: Address) -> socket.socket:
    sock = _new_socket(address[0])
    try:
        await asyncio.get_running_loop().sock_connect(sock, address[1])
    except BaseException:
        sock.close()
        raise
    return sock


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    """Close a socket that connected after another one had won."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


# --- threads ------------------------------------------------------------------------------------------------


def connect_first_blocking(addresses: list[Address], deadline: float | None) -> socket.socket:
    """As :func:`connect_first`, in the calling thread, with a ``deadline`` of ``time.monotonic()``.

    Raises:
        TimeoutError: no address answered in time; the error names the failures until then.
    """
    waiting = deque(addresses)
    attempts: dict[socket.socket, Address] = {}
    failures = _Failures()
    next_at = time.monotonic()
    try:
        with selectors.DefaultSelector() as selector:
            while waiting or attempts:
                now = time.monotonic()
                if deadline is not None and now >= deadline:
                    known = str(failures)
                    raise TimeoutError("no address answered in time" + (f"; {known}" if known else ""))
                if waiting and now >= next_at:
                    sock = _start(waiting.popleft(), attempts, failures)
                    if sock is not None:
                        selector.register(sock, selectors.EVENT_WRITE)
                        next_at = now + DELAY
                    continue
                for key, _ in selector.select(_seconds(now, next_at if waiting else None, deadline)):
                    sock = cast(socket.socket, key.fileobj)
                    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    address = attempts.pop(sock)
                    if not number:
                        return sock
                    selector.unregister(sock)
                    sock.close()
                    failures.add(address, OSError(number, os.strerror(number)))
                    next_at = now
        raise failures.error()
    finally:
        for sock in attempts:
            sock.close()


def _start(address: Address, attempts: dict[socket.socket, Address], failures: _Failures) -> socket.socket | None:
    """Start connecting to an address; None if that fails immediately."""
    try:
        sock = _new_socket(address[0])
    except OSError as error:
        failures.add(address, error)
        return None
    attempts[sock] = address
    number = sock.connect_ex(address[1])
    if number in _IN_PROGRESS:
        return sock
    del attempts[sock]
    sock.close()
    failures.add(address, OSError(number, os.strerror(number)))
    return None


def _seconds(now: float, *times: float | None) -> float | None:
    """Seconds until the earliest of these times; None if all of them are None."""
    known = [each for each in times if each is not None]
    return max(0.0, min(known) - now) if known else None
