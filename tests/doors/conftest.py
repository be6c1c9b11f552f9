"""Servers of this folder that live as long as the test session: starting one costs more than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .support import Uvicorn


@pytest.fixture(
    scope="session",
    params=[("asyncio", "h11"), ("asyncio", "httptools"), ("uvloop", "h11"), ("uvloop", "httptools")],
    ids="-".join,
)
def uvicorns(request: pytest.FixtureRequest) -> Iterator[Uvicorn]:
    """A uvicorn with our class for each event loop and each HTTP parser."""
    loop, http = request.param
    with Uvicorn(loop=loop, http=http) as server:
        yield server
