"""The memory of all connections of a process: which of them pause or close when they hold too much (``max_memory``).

A connection has an account once it holds more than a small amount, and reports in steps, so that messages that arrive
whole and are taken at once are never counted. The module only does the accounting: it reads no clock, measures no
memory, and does not touch connections. Reports may come from any thread; callbacks are called without the lock.

This file is compiled as well as interpreted, as each message of 64 KiB or more is reported twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from ..errors import LocalProtocolError, ProtocolError, RemoteProtocolError

__all__ = ["MAX_PAUSE", "STEP", "Account", "MemoryBudget", "Meter"]

STEP: Final = 4 * 2**10
"""Bytes below which a connection is not counted, and the smallest change that it reports."""

MAX_PAUSE: Final = 5.0
"""Seconds that reading may be paused to save memory until :meth:`Account.overdue` has to be called."""

# C integers in the compiled build.
_STEP = STEP
# The step of a connection that holds more than 16 KiB is a quarter of what it holds, and at most this many bytes.
_LARGEST_STEP = 64 * 2**10


class Account:
    """The memory that one connection holds.

    Args:
        budget: the budget of the process.
        limit: ``max_memory`` of this connection, in bytes.
        notify: called in any thread when ``paused`` or ``ending`` has changed; it must not block for long.

    Attributes:
        paused: whether the connection must not read.
        paused_at: when ``paused`` was set.
        ending: whether the connection must close, with :meth:`error`.
        ending_size: bytes that it held when ``ending`` was set.
        held: bytes last reported.
    """

    __slots__ = (
        "_budget",
        "_making",
        "_notify",
        "_queued",
        "_unsent",
        "ending",
        "ending_size",
        "held",
        "limit",
        "paused",
        "paused_at",
    )

    def __init__(self, budget: MemoryBudget, limit: int, notify: Callable[[], object]) -> None:
        self._budget = budget
        self._notify = notify
        self._making = self._queued = self._unsent = 0
        self.limit = limit
        self.held = 0
        self.paused = False
        self.paused_at = 0.0
        self.ending = False
        self.ending_size = 0

    def report(self, making: int, queued: int, unsent: int, now: float) -> None:
        """Report what the connection holds; less than ``STEP`` bytes count as zero.

        Args:
            making: bytes of the incomplete message.
            queued: bytes of messages that the application has not taken.
            unsent: bytes that are not sent.
            now: current time in seconds, of a monotonic clock.
        """
        self._making, self._queued, self._unsent = making, queued, unsent
        held = making + queued + unsent
        self._budget.report(self, held if held >= _STEP else 0, now)

    def overdue(self) -> None:
        """Report that reading has been paused for ``MAX_PAUSE`` seconds, so that waiting frees no memory."""
        self._budget.overdue(self)

    def close(self) -> None:
        """Report that the connection holds nothing any more."""
        self._making = self._queued = self._unsent = 0
        self._budget.report(self, 0, 0.0)

    def recovered(self) -> bool:
        """Whether the connection need not close, as it has released half of its memory since."""
        return self._budget.recover(self)

    def notify(self) -> None:
        """Make the connection check ``paused`` and ``ending``."""
        self._notify()

    @property
    def unsent_most(self) -> bool:
        """Whether unsent data is the largest part: the peer does not read, and would not get a Close either."""
        return self._unsent >= self._making and self._unsent >= self._queued

    def error(self) -> ProtocolError:
        """The error to close with.

        1009 if the peer's incomplete message takes the memory, as smaller messages would work. Otherwise 1013 ("try
        again later"), as the peer is not at fault.
        """
        making, queued, unsent = self._making, self._queued, self._unsent
        text = (
            f"connections of this process hold more than {self.limit} bytes (max_memory); this one held {making} of an "
            f"incomplete message, {queued} not taken by the application, {unsent} unsent"
        )
        if making > max(queued, unsent):
            return RemoteProtocolError(text, close_code=1009)
        return LocalProtocolError(text, close_code=1013)


class Meter:
    """Decides when a connection reports to its account: whenever the memory that it holds has changed by a step.

    Args:
        account: the connection's account; kept while the connection holds nothing, as each large message would need
            another one.
    """

    __slots__ = ("_above", "_below", "account")

    def __init__(self, account: Account) -> None:
        self.account = account
        self._above = STEP
        self._below = 0

    def is_due(self, held: int) -> bool:
        """Whether ``held`` bytes have to be reported."""
        return held >= self._above or held < self._below

    def set_marks(self, held: int) -> bool:
        """Set the marks for the next report, as ``held`` bytes are being reported; returns whether they count."""
        if held < _STEP:
            self._above, self._below = _STEP, 0
            return False
        step = min(max(_STEP, held // 4), _LARGEST_STEP)
        self._above = held + step
        self._below = held - step + 1
        return True


class MemoryBudget:
    """The accounts of a process. Together they may hold the smallest ``max_memory`` among them.

    At three quarters of it, reading pauses on connections that hold more than an equal share; it resumes below half.
    Above the limit the largest connections close, until a sixteenth is free. A closing connection counts until it has
    released its memory.

    Args:
        lock: protects all state; reentrant, as an allocation may run arbitrary code.
        warn: called with a line for the log.
    """

    def __init__(self, lock: AbstractContextManager[object], warn: Callable[[str], object]) -> None:
        self._lock = lock
        self._warn = warn
        self._accounts: set[Account] = set()
        self._paused: set[Account] = set()
        self._lowest = 0  # number of accounts with the effective limit
        self._higher: dict[int, int] = {}  # number of accounts with each higher limit
        self._limit = self._mark = 0
        self._gone: deque[Account] = deque()
        self._ending = 0
        self.total = 0

    def __len__(self) -> int:
        return len(self._accounts)

    @property
    def limit(self) -> int:
        """Bytes that all accounts together may hold; 0 without accounts."""
        return self._limit if self._accounts else 0

    def forget(self, lock: AbstractContextManager[object]) -> None:
        """Start anew in a forked child: the connections are the parent's, and its lock may never be released."""
        self.__init__(lock, self._warn)  # type: ignore[misc]

    def lost(self, account: Account) -> None:
        """Record that the connection was garbage-collected; its account is closed with the next report."""
        self._gone.append(account)

    # --- reports -----------------------------------------------------------------------------------------

    def report(self, account: Account, held: int, now: float) -> None:
        """Count what ``account`` holds, and notify the accounts that have to react."""
        with self._lock:
            while self._gone:
                self._count(self._gone.popleft(), 0)
            paused = account.paused
            self._count(account, held)
            if self.total <= self._mark and not self._paused and not paused:
                return  # the usual case, several times for each large message
            line, orders = self._decide(account, now)
            if paused and held == 0 and account not in orders:
                orders.append(account)  # it has released everything, and may read
        self._deliver(line, orders)

    def overdue(self, account: Account) -> None:
        """Close the largest paused connections until half is free; below the mark, let all of them read instead."""
        with self._lock:
            if not account.paused:
                return
            account.paused_at += MAX_PAUSE
            line, orders = "", self._resumed(self._mark)
            if not orders:
                line, orders = self._end(sorted(self._paused, key=_size, reverse=True), self._limit // 2)
        self._deliver(line, orders)

    def recover(self, account: Account) -> bool:
        """Whether ``account`` need not close, as it holds at most half of what it held when ``ending`` was set."""
        with self._lock:
            if account.ending and account.held > account.ending_size // 2:
                return False
            if account.ending:
                account.ending = False
                self._ending -= account.held
            return True

    def _deliver(self, line: str, orders: list[Account]) -> None:
        if line:
            self._warn(line)
        for account in orders:
            account.notify()

    # --- lock held ---------------------------------------------------------------------------------------

    def _count(self, account: Account, held: int) -> None:
        if account not in self._accounts:
            account.held = 0
            account.paused = account.ending = False
            if held == 0:
                return
            self._join(account)
        self.total += held - account.held
        if account.ending:
            self._ending += held - account.held
        account.held = held
        if held == 0:
            self._leave(account)

    def _join(self, account: Account) -> None:
        limit = account.limit
        if not self._accounts:
            self._set_limit(limit)
            self._lowest = 1
        elif limit == self._limit:
            self._lowest += 1
        elif limit < self._limit:
            self._higher[self._limit] = self._lowest
            self._set_limit(limit)
            self._lowest = 1
        else:
            self._higher[limit] = self._higher.get(limit, 0) + 1
        self._accounts.add(account)

    def _leave(self, account: Account) -> None:
        self._accounts.discard(account)
        self._release(account)
        limit = account.limit
        if limit != self._limit:
            self._higher[limit] -= 1
            if not self._higher[limit]:
                del self._higher[limit]
            return
        self._lowest -= 1
        if self._lowest == 0 and self._higher:
            limit = min(self._higher)
            self._lowest = self._higher.pop(limit)
            self._set_limit(limit)

    def _set_limit(self, limit: int) -> None:
        self._limit = limit
        self._mark = limit - limit // 4

    def _decide(self, account: Account, now: float) -> tuple[str, list[Account]]:
        if self.total - self._ending > self._limit:
            largest = sorted(self._accounts, key=_size, reverse=True)
            return self._end(largest, self._limit - self._limit // 16)
        share = self._mark // max(1, len(self._accounts))
        if account.paused:
            if account.held <= share // 2:
                self._release(account)
                return "", [account, *self._resumed(self._limit // 2)]
        elif account.held > share and self.total > self._mark and not account.ending:
            account.paused = True
            account.paused_at = now
            self._paused.add(account)
            line = self._figures("reading pauses on those that hold the most") if len(self._paused) == 1 else ""
            return line, [account]
        return "", self._resumed(self._limit // 2)

    def _resumed(self, most: int) -> list[Account]:
        """Let all paused accounts read if at most ``most`` bytes are held; returns them."""
        if not self._paused or self.total - self._ending > most:
            return []
        resumed = list(self._paused)
        for account in resumed:
            self._release(account)
        return resumed

    def _release(self, account: Account) -> None:
        account.paused = False
        self._paused.discard(account)

    def _end(self, candidates: list[Account], most: int) -> tuple[str, list[Account]]:
        ended: list[Account] = []
        size = 0
        for account in candidates:
            if self.total - self._ending <= most:
                break
            if not account.ending:
                account.ending = True
                account.ending_size = account.held
                self._release(account)
                self._ending += account.held
                size += account.held
                ended.append(account)
        line = self._figures(f"the largest are closed, {len(ended)} with {_mebibytes(size)}") if ended else ""
        return line, ended

    def _figures(self, what: str) -> str:
        return (
            f"connections hold {_mebibytes(self.total)} of {_mebibytes(self._limit)} (max_memory), "
            f"{len(self._accounts)} of them more than {STEP // 2**10} KiB: {what}"
        )


def _size(account: Account) -> int:
    return account.held


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
