"""Happy Eyeballs (RFC 8305): of the addresses that a name has, the one that answers first, for both flavours.

A name often has an address of each family, of which one leads nowhere (broken IPv6). Addresses are tried in turn, the
families alternating, each a quarter of a second after the one before or as soon as that has failed; the first that
connects wins, and every other attempt is closed. One descriptor is left, or none.
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

__all__ = ["Address", "connect_first", "connect_first_blocking", "resolve", "resolve_blocking"]

Address: TypeAlias = "tuple[int, Any]"
"""A family, and an address in it, as sockets take it."""

# Section 5: "Connection Attempt Delay ... a recommended value of 250 milliseconds".
DELAY: Final = 0.25
_UNDER_WAY = frozenset({0, errno.EINPROGRESS, errno.EWOULDBLOCK})


async def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host, by name or by address of either kind, in the order in which to try them.

    Raises:
        OSError: it has none (``socket.gaierror``).
        UnicodeError: the name cannot be one.
    """
    try:
        return _resolved(host, port, socket.AI_NUMERICHOST)  # which asks nobody
    except socket.gaierror:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return _in_turn(infos)


def resolve_blocking(host: str, port: int) -> list[Address]:
    """As :func:`resolve`."""
    return _resolved(host, port, 0)


def _resolved(host: str, port: int, flags: int) -> list[Address]:
    return _in_turn(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))


def _in_turn(infos: Iterable[Any]) -> list[Address]:
    """Section 4: the families alternate, beginning with that of the first address; within each the order stays."""
    families: dict[int, list[Address]] = {}
    for family, _, _, _, address in infos:
        known = families.setdefault(family, [])
        if (family, address) not in known:
            known.append((family, address))
    return [each for group in zip_longest(*families.values()) for each in group if each is not None]


class _Failures:
    """What became of the addresses that did not answer."""

    def __init__(self) -> None:
        self._errors: list[tuple[Address, OSError]] = []

    def add(self, address: Address, error: OSError) -> None:
        """Note a failure."""
        self._errors.append((address, error))

    def __str__(self) -> str:
        return "; ".join(
            f"{shown(address)}: {os.strerror(error.errno) if error.errno else error}" for address, error in self._errors
        )

    def error(self) -> OSError:
        """All of them as one error, of the kind of the last."""
        if not self._errors:
            return OSError("expected addresses to connect to, got none")
        last = self._errors[-1][1]
        if len(self._errors) == 1:
            return last
        # With a number OSError makes itself a ConnectionRefusedError, say.
        return OSError(last.errno, f"no address answers: {self}") if last.errno else OSError(str(self))


def shown(address: Address) -> str:
    """An address as it is written."""
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
    """The first of these addresses to connect, as a non-blocking socket.

    Raises:
        OSError: none does; it says why for each.
    """
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
                    continue  # it came in second, and is closed below
                del attempts[task]
    finally:
        await _call_off(attempts, winner)
    if winner is None:
        raise failures.error()
    return winner


async def _call_off(attempts: Collection[asyncio.Task[socket.socket]], winner: socket.socket | None) -> None:
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
    """Close what has connected when another one had won already."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


# --- threads ------------------------------------------------------------------------------------------------


def connect_first_blocking(addresses: list[Address], deadline: float | None) -> socket.socket:
    """As :func:`connect_first`, without a thread for each, until ``deadline`` of ``time.monotonic()``.

    Raises:
        TimeoutError: none has connected by then; it says why for those that have failed.
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
                    said = str(failures)
                    raise TimeoutError("no address has answered in time" + (f"; {said}" if said else ""))
                if waiting and now >= next_at:
                    sock = _begin(waiting.popleft(), attempts, failures)
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


def _begin(address: Address, attempts: dict[socket.socket, Address], failures: _Failures) -> socket.socket | None:
    """Begin to connect to an address; None where that fails at once."""
    try:
        sock = _new_socket(address[0])
    except OSError as error:
        failures.add(address, error)
        return None
    attempts[sock] = address
    number = sock.connect_ex(address[1])
    if number in _UNDER_WAY:
        return sock
    del attempts[sock]
    sock.close()
    failures.add(address, OSError(number, os.strerror(number)))
    return None


def _seconds(now: float, *times: float | None) -> float | None:
    """Seconds until the first of these times; None where there is none."""
    known = [each for each in times if each is not None]
    return max(0.0, min(known) - now) if known else None
