"""Servers that live as long as the test session, because starting one costs more than most tests.

Each is started when the first test needs it. Tests replace its application, never its settings.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest
import trustme

from tests.support.threaded_servers import Uvicorn

Start: TypeAlias = Callable[[str, str], Uvicorn]


@pytest.fixture(scope="session")
def running() -> Iterator[Start]:
    """Uvicorn with `WatershedProtocol` on this event loop and this HTTP parser."""
    with contextlib.ExitStack() as stack:
        yield cache(lambda loop, http: stack.enter_context(Uvicorn(loop=loop, http=http)))


# Loop and parser never meet: one reads the head, the other moves the bytes after it. So each of them once is enough
# for nearly everything.
@pytest.fixture(scope="session", params=["asyncio-h11", "uvloop-httptools"])
def uvicorns(running: Start, request: pytest.FixtureRequest) -> Uvicorn:
    """Uvicorn with `WatershedProtocol`: on either event loop, with either HTTP parser."""
    return running(*request.param.split("-"))


@pytest.fixture(scope="session", params=["asyncio-h11", "asyncio-httptools", "uvloop-h11", "uvloop-httptools"])
def every_uvicorn(running: Start, request: pytest.FixtureRequest) -> Uvicorn:
    """Uvicorn with `WatershedProtocol` in every combination, for behaviour between parser and event loop."""
    return running(*request.param.split("-"))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A server's certificate with its key, and a client that trusts it."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return path, client


@pytest.fixture
def client_tls(certificate: tuple[Path, ssl.SSLContext]) -> ssl.SSLContext:
    """A client's side of the TLS that `tls_uvicorns` speak."""
    return certificate[1]


@pytest.fixture(scope="session", params=["asyncio-h11", "uvloop-httptools"])
def tls_uvicorns(certificate: tuple[Path, ssl.SSLContext], request: pytest.FixtureRequest) -> Iterator[Uvicorn]:
    """The same as `uvicorns`, over TLS."""
    loop, http = request.param.split("-")
    with Uvicorn(loop=loop, http=http, ssl_certfile=certificate[0]) as server:
        yield server


@pytest.fixture(scope="module")
def one_uvicorn(running: Start) -> Uvicorn:
    """Uvicorn with `WatershedProtocol` on one loop, for slow tests; tests/connections covers the other combinations."""
    return running("uvloop", "httptools")


@pytest.fixture(scope="module", params=["native", "portable"])
def doors(running: Start, request: pytest.FixtureRequest) -> Iterator[Uvicorn]:
    """Both modes of the middleware: native under `WatershedProtocol`, and over the ASGI messages of another class."""
    if request.param == "native":
        yield running("asyncio", "h11")
    else:
        with Uvicorn(ws="websockets-sansio") as server:
            yield server
