"""The import paths that applications use: each exists, and is the very object that the package uses."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The module that applications name, its names, and the module that makes each of them.
PUBLIC: dict[str, dict[str, str]] = {
    "watershed_mw": {
        "AsyncConnection": "connection.aio.api",
        "CloseCode": "core.codes",
        "ConnectionClosed": "errors",
        "DeflateOptions": "core.handshake.extensions",
        "HandshakeError": "errors",
        "Limits": "core.limits",
        "LocalProtocolError": "errors",
        "Options": "options",
        "ProtocolError": "errors",
        "RemoteProtocolError": "errors",
        "Request": "core.handshake.negotiation",
        "Stats": "connection.base",
        "ThreadConnection": "connection.threads.connection",
        "UnsupportedServerError": "errors",
        "Watershed": "watershed",
        "WatershedASGI": "asgi.middleware",
        "WatershedConnection": "connection.base",
        "WatershedError": "errors",
        "WatershedWSGI": "wsgi.middleware",
        "broadcast": "connection.broadcast",
        "implementation": "_implementation",
        "live_connections": "connection.base",
    },
    "watershed_mw.asgi": {"ASGIUpgrade": "asgi.upgrade", "WatershedASGI": "asgi.middleware"},
    "watershed_mw.client": {
        "Backoff": "client.retry",
        "Connect": "client.connector",
        "Retry": "client.retry",
        "connect": "client.connector",
        "worth_retrying": "client.retry",
    },
    "watershed_mw.cli": {"main": "cli"},
    "watershed_mw.proxy": {
        "ProxyRequest": "proxy.target",
        "Relay": "relay.api",
        "RelayEnd": "relay.outcome",
        "RelayResult": "relay.outcome",
        "Upstream": "proxy.target",
        "WebSocketProxy": "proxy.application",
        "live_relays": "relay.api",
        "relay": "relay.api",
    },
    "watershed_mw.relay": {
        "Relay": "relay.api",
        "RelayEnd": "relay.outcome",
        "RelayResult": "relay.outcome",
        "Stream": "relay.streams",
        "live_relays": "relay.api",
        "relay": "relay.api",
    },
    "watershed_mw.uvicorn": {
        "NativeDoor": "uvicorn.native_door",
        "WatershedProtocol": "uvicorn.protocol",
        "options_of": "uvicorn.options",
    },
    "watershed_mw.wsgi": {
        "Rejection": "wsgi.responses",
        "WSGIUpgrade": "wsgi.upgrade",
        "WatershedWSGI": "wsgi.middleware",
        "asks_for_upgrade": "wsgi.middleware",
        "install_signal_handlers": "wsgi.shutdown",
    },
    # One file each: what they export is what they define.
    "watershed_mw.django": {},
    "watershed_mw.errors": {},
    "watershed_mw.fastapi": {},
    "watershed_mw.flask": {},
    "watershed_mw.starlette": {},
    "watershed_mw.testing": {},
    "watershed_mw.werkzeug": {},
}
NAMES = [(module, name) for module, names in PUBLIC.items() for name in names]


@pytest.mark.parametrize("module, name", NAMES)
def test_a_public_name_is_the_object_that_the_package_uses(module: str, name: str) -> None:
    made = importlib.import_module(f"watershed_mw.{PUBLIC[module][name]}")
    assert getattr(importlib.import_module(module), name) is getattr(made, name)


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_module_exports_its_documented_names(module: str) -> None:
    exported = set(importlib.import_module(module).__all__)
    assert exported >= PUBLIC[module].keys()
    assert all(hasattr(importlib.import_module(module), name) for name in exported)


def _documented() -> set[tuple[str, str]]:
    """Every (module, name) that README, documentation and examples import or name."""
    found: set[tuple[str, str]] = set()
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py")]
    for text in (page.read_text() for page in pages):
        for module, names in re.findall(r"from (watershed_mw[.\w]*) import (\([^)]*\)|[^\n#]+)", text):
            for one in names.strip("() ").replace("\n", " ").split(","):
                if one.strip():
                    found.add((module, re.split(r"\s", one.strip())[0].strip("`)")))
        found.update(re.findall(r"(watershed_mw[.\w]*):(\w+)", text))
    return found


def test_every_documented_path_can_be_imported() -> None:
    documented = _documented()
    assert len(documented) > 20, "the pages are not read"
    for module, name in sorted(documented):
        assert module in PUBLIC, f"{module} is named in the documentation, and not in PUBLIC"
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"
