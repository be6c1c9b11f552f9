"""uvicorn/header_cache.py: fields that many requests share are stored once, and individual ones are not stored."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from watershed_mw.uvicorn import header_cache
from watershed_mw.uvicorn.header_cache import share_fields


@pytest.fixture(autouse=True)
def nothing_is_known() -> Iterator[None]:
    header_cache._known.clear()
    yield
    header_cache._known.clear()


def parsed(*lines: str) -> list[tuple[bytes, bytes]]:
    """Fields as an HTTP layer creates them: new objects for each request."""
    return [(name.encode(), value.encode()) for name, value in (line.split(": ") for line in lines)]


REQUEST = ("host: a.example", "user-agent: Firefox", "cookie: id=1", "sec-websocket-key: abc", "x-mine: 1", "host: b")


def test_fields_keep_their_values_and_order() -> None:
    for _ in range(2):
        fields = parsed(*REQUEST)
        share_fields(fields)
        assert fields == parsed(*REQUEST)
        assert all(type(field) is tuple for field in fields)


def test_common_fields_of_two_requests_are_the_same_objects() -> None:
    first, second = parsed(*REQUEST), parsed(*REQUEST)
    share_fields(first)
    share_fields(second)
    assert [one is other for one, other in zip(first, second, strict=True)] == [True, True, False, False, False, True]
    assert first[2][0] is second[2][0], "the name of a field that is a client's own is shared"
    assert first[2][1] is not second[2][1]


def test_individual_values_are_not_cached() -> None:
    share_fields(parsed("cookie: id=1", "authorization: Bearer x", "sec-websocket-key: abc", "x-forwarded-for: ::1"))
    assert not header_cache._known


def test_clients_cannot_fill_the_cache_and_common_fields_return() -> None:
    for number in range(2000):
        share_fields(parsed(f"user-agent: {number}", f"host: {'x' * 300}{number}", "upgrade: websocket"))
        assert len(header_cache._known) <= 512
    assert (b"upgrade", b"websocket") in header_cache._known
    assert max(len(value) for _, value in header_cache._known) <= 256
