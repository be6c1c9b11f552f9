"""The series of the benchmark: their contestants, loads and targets, which the code calls bars.

A bar limits a ratio within one run, or for a few loads an absolute figure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.contestants import Setting

# Number of rounds for contestants that are far from any bar, and for series whose figures hardly vary.
FEW = 2


@dataclass(frozen=True)
class Load:
    """One load of the load generator; sizes in bytes."""

    name: str
    connections: int = 1
    window: int = 1
    size: int = 32
    text: bool = False
    deflate: bool = False
    messages: int = 0
    rounds: int = 0
    kind: str = "echo"
    quick: bool = True


@dataclass(frozen=True)
class Bar:
    """The target of one contestant under one load, as a ratio to a reference or as an absolute figure.

    With `minus`, it is the difference from the figure of another load.
    """

    load: str
    contestant: str
    limit: float
    reference: str | None = None
    minus: str | None = None
    at_least: bool = False

    def asked(self, unit: str) -> str:
        what = f"{self.contestant} {'at least' if self.at_least else 'at most'} {self.limit:g}"
        what += f" of {self.reference}" if self.reference else f" {unit}"
        return what + (f' more than "{self.minus}"' if self.minus else "")

    def holds(self, seen: float) -> bool:
        return seen >= self.limit if self.at_least else seen <= self.limit


@dataclass(frozen=True)
class Series:
    """Loads that are measured together, on servers with one setting; with `fresh` each load has its own server.

    `rounds` limits the number of rounds. The contestants in `few` are measured in the first rounds only, and not at all
    with --quick.
    """

    name: str
    title: str
    contestants: tuple[str, ...]
    loads: tuple[Load, ...]
    bars: tuple[Bar, ...] = ()
    setting: Setting = Setting(loop="uvloop")  # noqa: RUF009 - it is frozen
    reference: str = "websockets-sansio"
    metric: str = "cpu"
    unit: str = "us"
    rounds: int | None = None
    few: tuple[str, ...] = ()
    fresh: bool = False
    quick: bool = True


def echo(connections: int, window: int, size: int, **more: Any) -> Load:
    unit = f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 2**10} KiB" if size >= 2**10 else f"{size} B"
    name = f"c={connections} w={window} {unit}"
    return Load(name, connections=connections, window=window, size=size, **more)


# --- the series --------------------------------------------------------------------------------------------------

ONE, MANY, BURST = echo(1, 1, 32), echo(100, 1, 32), echo(10, 64, 32)
BURST_4K, BURST_64K, BURST_1M = echo(10, 8, 2**12), echo(10, 8, 2**16), echo(4, 2, 2**20)
ROWS = (ONE, MANY, BURST, BURST_4K, BURST_1M)


def bars(contestant: str, reference: str, loads: tuple[Load, ...], limits: tuple[float, ...]) -> tuple[Bar, ...]:
    pairs = zip(loads, limits, strict=True)
    return tuple(Bar(load.name, contestant, limit, reference) for load, limit in pairs)


SANSIO, LIMIT = "websockets-sansio", "raw"
NEAR = (LIMIT, "native", "native-iter", "asgi", "starlette", "picows", SANSIO, "wsproto", "aiohttp")
FAR = ("websockets", "granian", "hypercorn", "node-ws", "flask-sock", "wsgi-blocking", "wsgi-background", "wsgi-async")
CORE = (LIMIT, "native", "asgi", "picows", SANSIO, "aiohttp")
JSON_BURST, JSON_MANY = echo(10, 8, 2**12, text=True, deflate=True), echo(100, 1, 2**12, text=True, deflate=True)
OPENED = ("native", "asgi", "starlette", "picows", SANSIO, "wsproto", "websockets", "aiohttp", "node-ws", "flask-sock")
PLAIN = Load("opened", connections=1500, kind="memory")
USED = replace(PLAIN, name="after one message", messages=1, quick=False)
DEFLATE = replace(PLAIN, name="opened, with deflate", deflate=True, quick=False)
DEFLATE_USED = replace(DEFLATE, name="after one message, with deflate", messages=1)
IDLE = Load("10,000 idle", connections=10_000, kind="keepalive")
HANDSHAKES = Load("opened and reset", kind="open")

SERIES = (
    Series(
        "uvloop",
        "echo, binary, uvloop",
        NEAR + FAR,
        (ONE, MANY, BURST, BURST_4K, BURST_64K, BURST_1M),
        (
            *bars("asgi", SANSIO, ROWS, (0.8, 0.40, 0.06, 0.13, 0.75)),
            *bars("native", "picows", ROWS, (1.0, 1.0, 0.12, 0.35, 1.0)),
            *bars("native", LIMIT, ROWS, (1.2, 1.15, 5, 2, 1.3)),
        ),
        few=FAR,
    ),
    Series(
        "asyncio",
        "echo, binary, plain asyncio",
        (LIMIT, "native", "asgi", "picows", SANSIO, "wsproto"),
        (ONE, MANY, BURST, BURST_4K),
        bars("asgi", SANSIO, (MANY, BURST, BURST_4K), (0.45, 0.15, 0.3)),
        setting=Setting(loop="asyncio"),
    ),
    Series(
        "interpreted",
        "echo, binary, uvloop, interpreted build",
        ("asgi", "native", "wsproto"),
        ROWS,
        bars("asgi", "wsproto", ROWS, (1.0,) * 5),
        setting=Setting(loop="uvloop", pure=True),
        reference="wsproto",
    ),
    Series(
        "deflate",
        "echo of JSON text with permessage-deflate, uvloop",
        ("native", "asgi", SANSIO, "wsproto", "websockets", "aiohttp", "node-ws"),
        (JSON_BURST, JSON_MANY),
        bars("asgi", SANSIO, (JSON_BURST, JSON_MANY), (0.7, 0.7)),
        few=("websockets", "node-ws"),
    ),
    Series(
        "text",
        "echo, JSON text, uvloop",
        (LIMIT, "native", "asgi", "starlette", "picows", SANSIO, "aiohttp"),
        tuple(replace(load, text=True) for load in (MANY, BURST, BURST_4K, BURST_1M)),
    ),
    Series(
        "tls",
        "echo, binary, TLS, uvloop",
        CORE,
        (MANY, BURST, BURST_4K, BURST_1M),
        setting=Setting(loop="uvloop", tls=True),
    ),
    Series(
        "sizes",
        "echo, binary, one in flight, uvloop",
        CORE,
        tuple(echo(connections, 1, size) for size in (2**12, 2**16, 2**20) for connections in (1, 100)),
        quick=False,
        rounds=3,
    ),
    Series(
        "scaling",
        "echo, binary, uvloop, by number of connections",
        CORE,
        (echo(10, 1, 32), echo(100, 1, 32), echo(1_000, 1, 32), echo(10_000, 1, 32, quick=False)),
        rounds=FEW,
    ),
    Series(
        "memory",
        "memory of an idle connection, uvloop",
        ("native", "asgi", "starlette", "picows", SANSIO, "wsproto", "websockets", "aiohttp", "node-ws"),
        (PLAIN, USED, DEFLATE, DEFLATE_USED),
        (
            Bar(PLAIN.name, "asgi", 8),
            Bar(PLAIN.name, "native", 5),
            Bar(DEFLATE_USED.name, "asgi", 2, minus=USED.name),
            Bar(DEFLATE_USED.name, "native", 2, minus=USED.name),
        ),
        metric="memory",
        unit="KiB",
        few=("websockets", "node-ws"),
        rounds=1,
        fresh=True,
    ),
    Series(
        "keepalive",
        "10,000 idle connections with PINGs, uvloop",
        ("native", "asgi", SANSIO),
        (IDLE,),
        (Bar(IDLE.name, "asgi", 2), Bar(IDLE.name, "native", 2)),
        metric="share",
        unit="percent of a core",
        rounds=1,
        quick=False,
    ),
    Series(
        "handshakes",
        "opening handshakes of one client, one after another, uvloop",
        ("bare", *OPENED),
        (HANDSHAKES, Load("with one message and a closing handshake", kind="churn")),
        (Bar(HANDSHAKES.name, "asgi", 1.6, SANSIO, at_least=True),),
        metric="rate",
        unit="per second",
        few=("websockets", "node-ws", "flask-sock"),
    ),
    Series(
        "broadcast",
        "one message of 32 B to all connections, uvloop",
        ("native", "picows", "websockets"),
        (
            Load("to 1,000", connections=1_000, rounds=30, kind="broadcast"),
            Load("to 10,000", connections=10_000, rounds=10, kind="broadcast", quick=False),
        ),
        (Bar("to 1,000", "native", 0.334, "websockets"),),
        reference="websockets",
        rounds=3,
    ),
)
