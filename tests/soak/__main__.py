"""The command: ``python -m tests.soak [--seconds N] [DOOR ...]``. Exit status 0: nothing was lost, nothing is left.

Every door gets clients of both flavours and clients that keep to no rule, all at once. A third of the time warms up;
then everything that the processes hold is noted, and must not be more at the end, when all connections have gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import watershed_mw
from tests.soak.apps import holdings as garbage_gone
from tests.soak.doors import DOORS, STARTING, Door, serving
from tests.soak.holdings import (
    MOST_BLOCKS,
    Holdings,
    complaints,
    of_server,
    of_this_process,
    settled,
)
from tests.soak.lives import Tally, live_asyncio, live_threads, live_wild
from tests.support.programs import Program
from watershed_mw import live_connections

WARM_UP = 1 / 3
_M_ARENA_MAX = -8  # of <malloc.h>
CLIENTS = "the clients"


@dataclass
class Soaked:
    """A running door."""

    door: Door
    program: Program
    port: int
    tally: Tally = field(default_factory=Tally)
    faults: list[str] = field(default_factory=list)
    before: Holdings | None = None
    grown: float = 0.0

    def paths(self) -> Iterator[str]:
        """Cycle through its paths endlessly."""
        while True:
            yield from self.door.paths

    def failed(self, seed: int) -> None:
        """Record the exception that a life has raised."""
        if len(self.faults) < 5:
            self.faults.append(f"life {seed}: {traceback.format_exc(limit=-3)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser("python -m tests.soak", description=__doc__)
    parser.add_argument("door", nargs="*", help=f"of {', '.join(DOORS)}; all by default")
    parser.add_argument("--seconds", type=float, default=60, help="for all together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the lives (default: %(default)s)")
    parser.add_argument(
        "--grace",
        type=float,
        default=20,
        help="seconds for what ends by itself, such as a closing handshake that nobody answers (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.door) - set(DOORS):
        parser.error(f"expected doors among {', '.join(DOORS)}, got {', '.join(sorted(unknown))}")
    chosen = [DOORS[name] for name in options.door or DOORS]
    print(f"== soak, {watershed_mw.implementation} build, {options.seconds:g} s, {len(chosen)} doors", flush=True)
    if sys.platform == "linux":
        # One heap for the threads of all clients: each of glibc's heaps would keep fragments of its own (mallopt(3)).
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    with ExitStack() as stack:
        soaked = _start(stack, chosen)
        seeds = count(options.seed * 1_000_000)
        before, after, blocks = _soak(soaked, seeds, options.seconds, options.grace)
        failed = [_verdict(one, options.grace) for one in soaked]
        total = sum((one.tally for one in soaked), Tally())
        lives = sum(number for what, number in total.items() if what not in ("messages", "bytes"))
        found = complaints(before, after, 0)
        if blocks > MOST_BLOCKS * max(lives, 10_000):
            found.append(f"Python holds {blocks:,} blocks more after {lives:,} lives")
        failed.append(_show(CLIENTS, found, after.memory - before.memory, total))
    return 1 if any(failed) else 0


def _start(stack: ExitStack, doors: list[Door]) -> list[Soaked]:
    """Start every door; proxies start after their upstream."""
    upstream = DOORS["uvicorn-plain"]
    variables: dict[str, str] = {}
    soaked = []
    needed = any(door.proxy for door in doors) and upstream not in doors
    for door in sorted([*doors, upstream] if needed else doors, key=lambda door: door.proxy):
        program, port = stack.enter_context(serving(door, variables))
        if door is upstream:
            variables["UPSTREAM"] = f"ws://127.0.0.1:{port}"
        soaked.append(Soaked(door, program, port))
    for one in soaked:
        _wait_for(one)
    return soaked


def _wait_for(one: Soaked) -> None:
    until = time.monotonic() + STARTING
    while True:
        try:
            of_server(one.port)
        except OSError:
            if time.monotonic() > until:
                raise AssertionError(f"{one.door.name} does not answer; it printed:\n{one.program.output}") from None
            time.sleep(0.05)
        else:
            return


# --- the load ----------------------------------------------------------------------------------------------------


def _soak(soaked: list[Soaked], seeds: Iterator[int], seconds: float, grace: float) -> tuple[Holdings, Holdings, int]:
    """Run lives for this long; return what the clients hold after the warm-up and at the end.

    The number is that of Python's memory blocks at the end beyond those after the warm-up.
    """
    # Each load has threads and an event loop of its own: what the second one costs, and no later one, is warm-up too.
    for share in (WARM_UP / 2, WARM_UP / 2):
        _load(soaked, seeds, seconds * share)
    own = settled(_of_clients, lambda held: held.connections == 0, grace)
    blocks = sys.getallocatedblocks()
    for one in soaked:
        one.before = settled(partial(of_server, one.port), lambda held: held.connections == 0, grace)
    _load(soaked, seeds, seconds * (1 - WARM_UP))
    after = settled(_of_clients, lambda held: not complaints(own, held, 0), grace)
    return own, after, sys.getallocatedblocks() - blocks


def _of_clients() -> Holdings:
    garbage_gone(0)
    held = sum(isinstance(thing, watershed_mw.WatershedConnection) for thing in gc.get_objects())
    return of_this_process(0, max(held, len(live_connections())))


def _load(soaked: list[Soaked], seeds: Iterator[int], seconds: float) -> None:
    until = time.monotonic() + seconds
    works = [(_threads_client, one) for one in soaked] + [(_wild_client, one) for one in soaked if one.door.wild]
    threads = [threading.Thread(target=work, args=(one, seeds, until), daemon=True) for work, one in works]
    for thread in threads:
        thread.start()
    asyncio.run(_asyncio_clients(soaked, seeds, until))
    for thread in threads:
        thread.join()


async def _asyncio_clients(soaked: list[Soaked], seeds: Iterator[int], until: float) -> None:
    async def client(one: Soaked) -> None:
        for path in one.paths():
            if time.monotonic() > until or one.faults:
                return
            seed = next(seeds)
            try:
                await live_asyncio(f"ws://127.0.0.1:{one.port}{path}", seed, one.tally)
            except Exception:  # noqa: BLE001  # whatever it is, it is a finding
                one.failed(seed)

    await asyncio.gather(*(client(one) for one in soaked for _ in range(2)))
    # What the clients have left behind on this loop: nothing but this task.
    for _ in range(100):
        if len(asyncio.all_tasks()) == 1:
            return
        await asyncio.sleep(0.02)
    for one in soaked[:1]:
        one.faults.append(f"tasks of the asyncio client are left: {asyncio.all_tasks()}")


def _in_turn(one: Soaked, seeds: Iterator[int], until: float, life: Callable[[str, int], None]) -> None:
    for path in one.paths():
        if time.monotonic() > until or one.faults:
            return
        seed = next(seeds)
        try:
            life(path, seed)
        except Exception:  # noqa: BLE001  # as above
            one.failed(seed)


def _threads_client(one: Soaked, seeds: Iterator[int], until: float) -> None:
    _in_turn(one, seeds, until, lambda path, seed: live_threads(f"ws://127.0.0.1:{one.port}{path}", seed, one.tally))


def _wild_client(one: Soaked, seeds: Iterator[int], until: float) -> None:
    _in_turn(one, seeds, until, lambda path, seed: live_wild(one.port, path, seed, one.tally))


# --- the verdict -------------------------------------------------------------------------------------------------


def _verdict(one: Soaked, grace: float) -> bool:
    """Show the state of a door; return whether it failed."""
    found = list(one.faults)
    before, after = one.before, None
    with contextlib.suppress(OSError):
        assert before is not None
        after = settled(
            partial(of_server, one.port), lambda held: not complaints(before, held, one.door.threads), grace
        )
    if before is None or after is None:
        found.append("the server does not answer any more")
    else:
        found += complaints(before, after, one.door.threads)
        one.grown = after.memory - before.memory
    # A client that leaves is no fault of anybody's, and no reason for a traceback.
    if "Traceback" in one.program.output:
        found.append(f"it printed:\n{one.program.output[-3000:]}")
    return _show(one.door.name, found, one.grown, one.tally)


def _show(name: str, found: list[str], grown: float, tally: Tally) -> bool:
    lives = sum(number for what, number in tally.items() if what not in ("messages", "bytes"))
    did = f"{lives:6,} lives, {tally['messages']:7,} messages of {tally['bytes'] / 2**20:6.0f} MiB"
    print(f"{name:15} {did}, {grown:+.1f} MiB held  {'FAILED' if found else 'passed'}", flush=True)
    for fault in found:
        print("    " + fault.replace("\n", "\n    "))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
