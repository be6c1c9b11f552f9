"""core/memory_budget.py: which connections pause and end when all together hold too much."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from watershed_mw.connection.memory import bytes_of
from watershed_mw.core.memory_budget import MAX_PAUSE, STEP, Account, MemoryBudget
from watershed_mw.errors import LocalProtocolError, RemoteProtocolError

MIB = 2**20
NOW = 1000.0


class Bank:
    """A budget, its log lines, and accounts that record their orders."""

    def __init__(self, limit: int = 100 * MIB) -> None:
        self.lines: list[str] = []
        self.budget = MemoryBudget(threading.RLock(), self.lines.append)
        self.limit = limit
        self.orders: list[Account] = []

    def account(self, limit: int | None = None, notify: Callable[[], object] | None = None) -> Account:
        def note() -> None:
            self.orders.append(account)

        account = Account(self.budget, limit or self.limit, notify or note)
        return account

    def holding(self, *sizes: int) -> list[Account]:
        """Accounts with this many MiB of an incomplete message each."""
        accounts = [self.account() for _ in sizes]
        for account, size in zip(accounts, sizes, strict=True):
            account.report(size * MIB, 0, 0, NOW)
        return accounts


@pytest.fixture
def bank() -> Bank:
    return Bank()


def test_small_amounts_are_not_counted(bank: Bank) -> None:
    accounts = [bank.account() for _ in range(1000)]
    for account in accounts:
        account.report(STEP // 2, STEP // 4, STEP // 4 - 1, NOW)
    assert (bank.budget.total, len(bank.budget), bank.budget.limit) == (0, 0, 0)


@pytest.mark.need(6)
def test_at_three_quarters_the_largest_pause_and_the_small_continue(bank: Bank) -> None:
    small, large, other = bank.holding(1, 40, 33)
    assert bank.orders == []
    other.report(35 * MIB, 0, 0, NOW + 1)
    assert bank.orders == [other]
    large.report(41 * MIB, 0, 0, NOW + 2)
    small.report(2 * MIB, 0, 0, NOW + 2)
    assert [account.paused for account in (small, large, other)] == [False, True, True]
    assert not any(account.ending for account in (small, large, other))
    assert bank.lines == [
        (
            "connections hold 76.0 MiB of 100.0 MiB (max_memory), 3 of them more than 4 KiB: "
            "reading pauses on those that hold the most"
        )
    ]


@pytest.mark.need(6)
def test_reading_resumes_below_half(bank: Bank) -> None:
    small, large, other = bank.holding(1, 40, 35)
    bank.orders.clear()
    assert other.paused
    other.report(0, 20 * MIB, 0, NOW)
    assert other.paused
    large.close()
    assert not other.paused
    assert bank.orders == [other]
    assert bank.budget.total == 21 * MIB
    small.close()
    other.close()
    assert (bank.budget.total, len(bank.budget)) == (0, 0)


def test_a_connection_that_releases_its_memory_resumes_immediately(bank: Bank) -> None:
    *_, last = bank.holding(*[1] * 39, 37)
    assert last.paused
    last.report(0, MIB // 2, 0, NOW)
    assert not last.paused
    assert bank.orders == [last, last]


@pytest.mark.need(6)
def test_beyond_the_limit_the_largest_are_closed_until_a_sixteenth_is_free(bank: Bank) -> None:
    accounts = bank.holding(*[10] * 5, 20, 1, 28)
    assert [account.ending for account in accounts] == [False] * 8
    accounts[6].report(3 * MIB, 0, 0, NOW)
    assert [account.ending for account in accounts] == [False] * 7 + [True]
    assert bank.lines[-1].endswith("the largest are closed, 1 with 28.0 MiB")
    # An ending connection counts until it has released its memory, and no others are closed for it.
    accounts[0].report(11 * MIB, 0, 0, NOW)
    assert sum(account.ending for account in accounts) == 1
    accounts[7].close()
    assert bank.budget.total == 74 * MIB


@pytest.mark.parametrize(
    "parts, kind, code",
    [
        ((30, 10, 0), RemoteProtocolError, 1009),
        ((10, 30, 0), LocalProtocolError, 1013),
        ((0, 0, 30), LocalProtocolError, 1013),
    ],
    ids=["a message that was arriving", "not received", "unsent"],
)
def test_the_close_code_depends_on_the_kind_of_memory(parts: tuple[int, int, int], kind: type[Any], code: int) -> None:
    bank = Bank(20)
    account = bank.account(20 * MIB)
    making, queued, unsent = (part * MIB for part in parts)
    account.report(making, queued, unsent, NOW)
    assert account.ending
    error = account.error()
    assert type(error) is kind
    assert error.close_code == code
    assert account.unsent_most is (parts[2] == 30)
    assert str(error).startswith(
        f"connections of this process hold more than {20 * MIB} bytes (max_memory); this one held {parts[0] * MIB} of "
        "an incomplete message"
    )


@pytest.mark.need(6)
def test_when_a_pause_is_overdue_the_largest_are_closed_until_half_is_free(bank: Bank) -> None:
    # Half messages, of which nothing more comes: to wait would never free anything, and large messages would wait too.
    accounts = bank.holding(*[1] * 20, 20, 20, 10, 14)
    for account in accounts:
        account.report(account.held + STEP, 0, 0, NOW)
    paused = [account for account in accounts if account.paused]
    assert [account.held // MIB for account in paused] == [20, 20, 10, 14]
    paused[2].overdue()
    assert paused[2].paused_at == NOW + MAX_PAUSE
    assert [account.ending for account in paused] == [True, True, False, False]
    assert [account.paused for account in paused] == [False, False, True, True]
    accounts[20].close()
    accounts[21].close()
    assert not any(account.paused for account in accounts)


def test_an_overdue_connection_resumes_if_others_have_released_enough(bank: Bank) -> None:
    first, second, third = bank.holding(20, 30, 27)
    assert third.paused
    first.report(10 * MIB, 0, 0, NOW)
    assert third.paused
    third.overdue()
    assert [account.paused or account.ending for account in (first, second, third)] == [False] * 3


def test_a_connection_that_resumes_is_not_overdue(bank: Bank) -> None:
    account, other = bank.holding(40, 40)
    assert other.paused
    account.close()
    other.overdue()
    assert not other.ending


@pytest.mark.parametrize("beside", [0, 1])
@pytest.mark.parametrize("how", ["report", "close"])
def test_a_connection_that_releases_everything_at_once_resumes(bank: Bank, how: str, beside: int) -> None:
    account, *_ = bank.holding(80, *[1] * beside)
    account.report(81 * MIB, 0, 0, NOW)
    assert account.paused
    bank.orders.clear()
    if how == "close":
        account.close()
    else:
        account.report(0, 0, 0, NOW)
    assert not account.paused
    assert bank.orders == [account]


def test_a_connection_collected_while_paused_is_forgotten(bank: Bank) -> None:
    account, other = bank.holding(80, 1)
    account.report(81 * MIB, 0, 0, NOW)
    bank.budget.lost(account)
    other.report(2 * MIB, 0, 0, NOW)
    assert (account.paused, account.held, bank.budget.total) == (False, 0, 2 * MIB)


def test_a_connection_that_has_released_most_is_spared(bank: Bank) -> None:
    large, _ = bank.holding(60, 41)
    assert large.ending
    assert not large.recovered()
    large.report(0, 0, 20 * MIB, NOW)
    assert large.recovered()
    assert not large.ending
    assert bank.budget.total == 61 * MIB


@pytest.mark.need(6)
def test_the_lowest_limit_among_connections_that_hold_memory_applies(bank: Bank) -> None:
    low = bank.account(10 * MIB)
    (large,) = bank.holding(50)
    assert bank.budget.limit == 100 * MIB
    low.report(MIB, 0, 0, NOW)
    assert bank.budget.limit == 10 * MIB
    assert large.ending
    low.close()
    assert bank.budget.limit == 100 * MIB


def test_a_huge_limit_is_capped_at_the_largest_size(bank: Bank) -> None:
    account = bank.account(sys.maxsize)
    account.report(100 * MIB, 0, 0, NOW)
    assert (bank.budget.limit, account.paused, bank.lines) == (sys.maxsize, False, [])
    assert bytes_of(1e30) == sys.maxsize


def test_the_lowest_limit_applies_as_connections_come_and_go(bank: Bank) -> None:
    chance = random.Random(1)
    accounts = [bank.account(limit * 1000 * MIB) for limit in (1, 2, 3) for _ in range(2)]
    for _ in range(1000):
        account = chance.choice(accounts)
        account.report(chance.choice((0, MIB)), 0, 0, NOW)
        holding = [account for account in accounts if account.held]
        assert bank.budget.limit == min((account.limit for account in holding), default=0)
        assert (bank.budget.total, len(bank.budget)) == (len(holding) * MIB, len(holding))


def test_a_collected_connection_is_no_longer_counted(bank: Bank) -> None:
    account, other = bank.holding(30, 30)
    bank.budget.lost(account)
    other.report(31 * MIB, 0, 0, NOW)
    assert (bank.budget.total, len(bank.budget)) == (31 * MIB, 1)


def test_a_forked_child_starts_with_an_empty_budget(bank: Bank) -> None:
    accounts = bank.holding(40, 40)
    assert accounts[1].paused
    bank.budget.forget(threading.RLock())
    assert (bank.budget.total, len(bank.budget)) == (0, 0)
    accounts[1].report(5 * MIB, 0, 0, NOW)
    assert (bank.budget.total, len(bank.budget), accounts[1].paused) == (5 * MIB, 1, False)


def test_reports_from_many_threads_add_up() -> None:
    bank = Bank(2**50)

    def work(seed: int) -> None:
        account = bank.account()
        for step in range(2000):
            account.report((seed + step) % 7 * MIB, 0, 0, NOW)
        account.report(3 * MIB, 0, 0, NOW)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (bank.budget.total, len(bank.budget)) == (24 * MIB, 8)


def test_reports_may_arrive_while_orders_are_given() -> None:
    """A connection that is told to end releases its memory during the call, and reports from there."""
    bank = Bank()
    accounts: list[Account] = []
    for index in range(4):
        accounts.append(bank.account(notify=lambda index=index: accounts[index].close()))  # type: ignore[misc]
        accounts[index].report(26 * MIB, 0, 0, NOW)
    assert bank.budget.total < 100 * MIB
