"""Connections over ASGI messages, on asyncio and on trio: hypercorn's two workers and uvicorn's own class.

Each server is the real one, in a thread; what a test exchanges between requests is the application. Handlers use
anyio where they wait, so that the same handler runs on both. What a server itself decides (which close codes it
passes on) is the business of the tests in servers/; here it is what the connection does with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.portable_servers import Hypercorn, Server, UvicornsOwn


@pytest.fixture(scope="module", params=["hypercorn-asyncio", "hypercorn-trio", "uvicorn"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that provides only ASGI messages: hypercorn on either library, or uvicorn with its own class."""
    name, _, worker = request.param.partition("-")
    with Hypercorn(worker) if name == "hypercorn" else UvicornsOwn() as server:
        yield server
