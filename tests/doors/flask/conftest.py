"""One application for every test that does not need its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask

from tests.support.flask_app import EVENTS, application
from tests.support.waiting import eventually
from watershed_mw import live_connections


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    while not EVENTS.empty:
        EVENTS.get()
    eventually(lambda: not live_connections(), "the end of every connection")


@pytest.fixture(scope="module")
def app() -> Flask:
    return application()
