"""Tests of the fuzz targets: they pass on known inputs, and each notices a fault of the kind that it looks for.

A fault is injected under the name by which the target looks it up, so that it works on both builds. The long search is
``make fuzz``.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import watershed_mw.asgi.portable
import watershed_mw.asgi.pumps
import watershed_mw.proxy.headers
import watershed_mw.proxy.target
import watershed_mw.uvicorn.handshake
from tests.fuzz import run as fuzz_run
from tests.fuzz.run import Hang, TooMuchMemory, run, seeds_of
from tests.fuzz.source import Source
from tests.fuzz.targets import TARGETS, asgi, frames, http, routing
from watershed_mw.client.route import as_proxy
from watershed_mw.core.handshake.extensions import DeflateOptions
from watershed_mw.core.handshake.negotiation import Agreement
from watershed_mw.core.limits import Limits
from watershed_mw.errors import HandshakeError

PROJECT = Path(__file__).resolve().parents[2]
SOME = 100
MANY = 4000


def inputs(name: str, count: int) -> Iterator[bytes]:
    """The seeds of a target, then inputs that are the same each time, half of them mutations of seeds."""
    seeds = seeds_of(name)
    yield from seeds
    generator = random.Random(1)
    for number in range(count):
        data = bytearray(generator.randbytes(generator.choice((10, 50, 300))))
        if number % 2 and seeds:
            data = bytearray(generator.choice(seeds))
            for _ in range(generator.randint(1, 4)):
                start = generator.randint(0, len(data))
                data[start : start + generator.randint(0, 4)] = generator.randbytes(generator.randint(0, 4))
        yield bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_passes_on_its_seeds_and_on_other_inputs(name: str) -> None:
    assert 0 < len(seeds_of(name)) <= 40
    for data in inputs(name, SOME):
        run(TARGETS[name], data)


def test_every_seed_file_belongs_to_a_target() -> None:
    assert {path.stem for path in fuzz_run.SEEDS.iterdir()} == set(TARGETS)


# --- each target can fail ----------------------------------------------------------------------------------------

Fault = Callable[[pytest.MonkeyPatch], None]


def _put(place: Any, name: str, fault: Callable[[Any], Any]) -> Fault:
    return lambda patch: patch.setattr(place, name, fault(getattr(place, name)))


def _forgets_the_rest(read: Any) -> Any:
    return lambda data: (read(data)[0], b"")


def _fails_on_umlauts(check: Any) -> Any:
    def checked(request: Any, *args: Any) -> Any:
        for _, text in request.headers:
            text.encode("ascii")
        return check(request, *args)

    return checked


def _takes_the_first(select: Any) -> Any:
    return lambda offered, supported: offered[0] if offered else None


def _checks_no_accept(check: Any) -> Any:
    def checked(*args: Any, **options: Any) -> Any:
        try:
            return check(*args, **options)
        except HandshakeError:
            return Agreement()

    return checked


def _keeps_a_parameter_to_itself(accept: Any) -> Any:
    def accepted(*args: Any) -> Any:
        agreed = accept(*args)
        return agreed and (agreed[0], agreed[1].replace("server_no_context_takeover", "").replace("; ;", ";"))

    return accepted


def _fails_on_a_long_ping(protocol: Any) -> Any:
    class Faulty(protocol):  # type: ignore[misc]
        def receive_data(self, data: bytes, now: float) -> Any:
            if b"\x89\xfe" in data:
                raise IndexError(data)
            return super().receive_data(data, now)

    return Faulty


def _loses_a_byte_alone(protocol: Any) -> Any:
    class Faulty(protocol):  # type: ignore[misc]
        def receive_data(self, data: bytes, now: float) -> Any:
            return [] if len(data) == 1 and self.counts().messages_received else super().receive_data(data, now)

    return Faulty


def _sends_one_byte_more(protocol: Any) -> Any:
    class Faulty(protocol):  # type: ignore[misc]
        def send_binary(self, message: bytes) -> None:
            super().send_binary(message + b"x" if len(message) > 200 else message)

    return Faulty


def _misses_a_close(boundaries: Any) -> Any:
    class Faulty(boundaries):  # type: ignore[misc]
        def feed(self, data: bytes, start: int, stop: int) -> None:
            super().feed(data, start, stop - 1 if data[start:stop].endswith(b"\x88") else stop)

    return Faulty


def _replaces_what_is_no_utf8(decode: Any) -> Any:
    def decoded(payload: bytes) -> Any:
        code, _ = decode(payload[:2])
        return code, payload[2:].decode("utf-8", "replace")

    return decoded


def _welcomes_what_ends_alike(check: Any) -> Any:
    def checked(headers: Any, allowed: Any) -> None:
        if not headers.get("origin").endswith(headers.get("host")):
            check(headers, allowed)

    return checked


def _keeps_what_was_taken(protocol: Any) -> Any:
    class Faulty(protocol):  # type: ignore[misc]
        def taken(self) -> None:
            """Do nothing."""

    return Faulty


def _never_finishes(_: Any) -> Any:
    async def finish(self: Any, code: int) -> None:
        await asyncio.get_running_loop().create_future()

    return finish


FAULTS: dict[str, dict[str, Fault]] = {
    "request_heads": {"the bytes behind a head": _put(http, "read_by_h11", _forgets_the_rest)},
    "requests_as_given": {"an exception": _put(http, "check_request", _fails_on_umlauts)},
    "handshakes": {"a subprotocol": _put(http, "select_subprotocol", _takes_the_first)},
    "response_heads": {"the accept key": _put(http, "check_response", _checks_no_accept)},
    "negotiation": {"a parameter": _put(http, "accept_offer", _keeps_a_parameter_to_itself)},
    "protocol": {"an exception": _put(frames, "Protocol", _fails_on_a_long_ping)},
    "chunks": {"chunks of one byte": _put(frames, "Protocol", _loses_a_byte_alone)},
    "deflated": {"a message": _put(frames, "Protocol", _sends_one_byte_more)},
    "deflated_by_zlib": {"the limit": _put(frames, "LIMITS", lambda _: Limits(max_message_size=1000))},
    "boundaries": {"a close": _put(frames, "Boundaries", _misses_a_close)},
    "close_codes": {"a reason": _put(frames, "decode_close", _replaces_what_is_no_utf8)},
    "forwarding": {
        "a hop-by-hop field": _put(watershed_mw.proxy.headers, "_HOP_BY_HOP", lambda names: names - {"te"}),
        "an underscore": _put(watershed_mw.proxy.headers, "_plain", lambda _: str.lower),
    },
    "paths": {"dot segments": _put(watershed_mw.proxy.target, "_check_path", lambda _: lambda path: None)},
    "urls": {"a password": _put(routing, "shown", lambda _: str)},
    "proxies": {"an exception": _put(routing, "by_environment", lambda _: lambda url: as_proxy("http://x"))},
    "origins": {"a suffix": _put(routing, "check_origin", _welcomes_what_ends_alike)},
    "message_protocol": {"a second close": _put(asgi, "MessageProtocol", _keeps_what_was_taken)},
    "portable": {
        "a message": _put(
            watershed_mw.asgi.pumps,
            "_as_asgi",
            lambda _: lambda item, server: {"type": "websocket.send", "text": item},
        ),
        "no end": _put(watershed_mw.asgi.portable.PortableConnection, "finish", _never_finishes),
    },
    "uvicorn": {
        "an answer": _put(
            watershed_mw.uvicorn.handshake, "write_switch", lambda write: lambda *args: write(*args)[:-2]
        ),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name, fault", [(name, fault) for name in TARGETS for fault in FAULTS[name]])
def test_a_target_notices_a_fault(name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[name][fault](monkeypatch)

    def search() -> None:
        for data in inputs(name, MANY):
            run(TARGETS[name], data)

    with pytest.raises((Exception, Hang)):
        search()


def test_a_slow_input_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_run, "CPU_SECONDS", 0.05)

    def endless(source: Source) -> None:
        for _ in itertools.count():
            pass

    with pytest.raises(Hang):
        run(endless, b"")


def test_an_input_that_uses_too_much_memory_is_a_finding() -> None:
    def greedy(source: Source) -> None:
        bytearray(256 * 2**20)[::4096] = b"x" * (256 * 2**20 // 4096)

    with pytest.raises(TooMuchMemory):
        run(greedy, b"")


@pytest.mark.slow
def test_the_command_fails_if_a_target_has_a_finding(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "close_codes"]
    done = subprocess.run(
        [*command, "--random", "--seconds", "0.5"], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "close_codes" in done.stdout
    assert "FOUND" not in done.stdout


def test_options_of_the_targets_are_supported_by_zlib() -> None:
    for number in range(200):
        assert isinstance(http.options(Source(bytes([number, number]))), DeflateOptions)
