"""nginx and Caddy in front of a server, configured as the documentation says."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.asgi import Receive, Scope, Send
from tests.support.pages import named
from tests.support.peers import Peer
from tests.support.programs import Program, free_port, listens
from tests.support.waiting import eventually
from watershed_mw import AsyncConnection

HOST = "chat.example.com"
MAY_BE_LEFT_OUT = pytest.mark.skipif(
    os.environ.get("WATERSHED_MW_NO_PROXIES") == "1", reason="WATERSHED_MW_NO_PROXIES=1"
)


async def behind(scope: Scope, receive: Receive, send: Send) -> None:
    """Send the apparent client address, then echo. No PINGs are sent in /still."""
    options: Any = {"ping_interval": None if scope["path"] == "/still" else 0.3}
    connection: AsyncConnection = await scope["watershed"].through(receive, send).accept(**options)
    await connection.send(f"{scope['scheme']} {scope['client'][0]}")
    async for message in connection:
        await connection.send(message)


@dataclass
class Proxy:
    """A running proxy, and how to make it reload its configuration."""

    port: int
    scheme: str
    tls: ssl.SSLContext | None
    reload: Callable[[], None]

    @property
    def host(self) -> str:
        """Host and port, as in a browser's address bar."""
        return f"{HOST}:{self.port}"

    @property
    def is_caddy(self) -> bool:
        return self.tls is None

    def peer(self) -> Peer:
        return Peer(self.port, self.tls)


def put(text: str, *changes: tuple[str, str]) -> str:
    """`text` with each of these strings replaced; all of them must occur in it."""
    for old, new in changes:
        assert old in text, f"the page's configuration has no {old!r}"
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def nginx(place: Path, upstream: int, *changes: tuple[str, str]) -> Iterator[Proxy]:
    """The documented nginx configuration, with the test's port, certificate and timeout."""
    port = free_port()
    authority, tls = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(tls)
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(place / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(place / "certificate.pem")
    server = put(
        named("nginx").code,
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/ssl/chat.pem", f"{place}/certificate.pem"),
        ("/etc/ssl/chat.key", f"{place}/key.pem"),
        ("127.0.0.1:8000", f"127.0.0.1:{upstream}"),
        ("proxy_read_timeout 60s;", "proxy_read_timeout 1s;"),
        *changes,
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {place / kind};" for kind in kinds)
    (place / "nginx.conf").write_text(
        f"daemon off; pid {place / 'pid'}; error_log stderr notice;\nevents {{}}\n"
        f"http {{ access_log off; {places}\n{server}\n}}\n"
    )
    with Program("nginx", "-p", place, "-e", "stderr", "-c", place / "nginx.conf") as program:

        def reload() -> None:
            os.kill(program.pid, signal.SIGHUP)
            program.wait_for_line(re.compile("gracefully shutting down"))

        eventually(lambda: listens(port), program.output)
        yield Proxy(port, "https", tls, reload)


@contextlib.contextmanager
def caddy(place: Path, upstream: int) -> Iterator[Proxy]:
    """The documented Caddy configuration, without TLS because a certificate needs a public name."""
    port, admin = free_port(), free_port()
    site = put(named("caddy").code, (HOST, f"http://{HOST}:{port}"), (":8000", f":{upstream}"))
    (place / "Caddyfile").write_text(f"{{\n admin 127.0.0.1:{admin}\n storage file_system {place}\n}}\n{site}")
    read = ("--config", place / "Caddyfile", "--adapter", "caddyfile")
    with Program("env", f"HOME={place}", "caddy", "run", *read) as program:

        def reload() -> None:
            with Program("caddy", "reload", *read, "--address", f"127.0.0.1:{admin}", "--force") as order:
                assert order.wait() == 0, order.output

        eventually(lambda: listens(port), program.output)
        yield Proxy(port, "http", None, reload)


def need(name: str) -> None:
    assert shutil.which(name), (
        f"expected the program {name}: install it, or set WATERSHED_MW_NO_PROXIES=1 to leave these tests out"
    )
