"""The pages of docs/: command lines parse, links resolve, proxies run with the documented configuration."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daphne.cli import CommandLineInterface  # type: ignore[import-untyped]
from granian.cli import cli as granian_cli
from gunicorn.config import Config  # type: ignore[import-untyped]
from hypercorn import __main__ as hypercorn_cli
from uvicorn.main import main as uvicorn_cli
from websockets.frames import Opcode

from tests.support import PROJECT
from tests.support.front_proxies import MAY_BE_LEFT_OUT, Proxy, behind, caddy, need, nginx
from tests.support.pages import PAGES, commands
from tests.support.peers import Peer, head, text
from tests.support.threaded_servers import Uvicorn
from watershed_mw import WatershedASGI
from watershed_mw.cli.commands import cli as watershed_cli


@pytest.mark.parametrize("command", list(commands()), ids=lambda command: " ".join((command[0], *command[1])))
def test_command_lines_parse(command: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program, arguments = command
    if program == "uvicorn":
        uvicorn_cli.make_context(program, arguments)
    elif program == "granian":
        granian_cli.make_context(program, arguments)
    elif program == "gunicorn":
        Config().parser().parse_args(arguments)
    elif program == "daphne":
        CommandLineInterface().parser.parse_args(arguments)
    elif program == "hypercorn":
        parsed: list[Any] = []  # its parser is a local variable of main(), which passes the result to run()
        monkeypatch.setattr(hypercorn_cli, "run", parsed.append)
        hypercorn_cli.main(arguments)
        assert parsed[0].application_path == "main:app"
    elif program == "watershed-mw":
        name, *rest = arguments
        monkeypatch.chdir(tmp_path)
        for file in filter(re.compile(r"[\w-]+\.pem").fullmatch, arguments):
            Path(file).touch()
        watershed_cli.commands[name].make_context(name, rest)
    elif program == "pip":
        extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = re.search(r"watershed-mw\[(.*)\]", " ".join(arguments))
        assert wanted is None or set(wanted[1].split(",")) <= set(extras)
    else:
        raise AssertionError(f"no test knows the program {program}")


def test_links_resolve() -> None:
    for where in (*PAGES, PROJECT / "README.md", PROJECT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", where.read_text()):
            if target.startswith("http"):
                continue
            path, _, anchor = target.partition("#")
            file = (where.parent / path).resolve() if path else where
            assert file.exists(), f"{where.name} links to {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in anchors, f"{where.name} links to {target}"


def test_the_index_names_every_page() -> None:
    index = (PROJECT / "docs" / "README.md").read_text()
    assert {page.name for page in PAGES} - {"README.md"} <= set(re.findall(r"\]\((\w[\w-]*\.md)\)", index))


@pytest.fixture
def upstream() -> Iterator[int]:
    with Uvicorn(WatershedASGI(behind)) as server:  # it trusts proxies on this machine without being asked to
        yield server.port


@pytest.fixture(params=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest, upstream: int, tmp_path: Path) -> Iterator[Proxy]:
    need(request.param)
    with {"nginx": nginx, "caddy": caddy}[request.param](tmp_path, upstream) as running:
        yield running


def still_there(peer: Peer) -> None:
    """The connection echoes; PINGs in between are skipped."""
    peer.send(text("still there"))
    while (frame := peer.frame()).opcode is Opcode.PING:
        pass
    assert bytes(frame.data) == b"still there"


@pytest.mark.programs
@MAY_BE_LEFT_OUT
def test_behind_a_proxy_client_address_and_origin_check_work(proxy: Proxy) -> None:
    with proxy.peer() as peer:
        peer.open("/", Host=proxy.host, Origin=f"{proxy.scheme}://{proxy.host}")
        assert peer.text() == ("ws 127.0.0.1" if proxy.is_caddy else "wss 127.0.0.1")
    with proxy.peer() as foreign:
        foreign.send(head("/", Host=proxy.host, Origin="http://elsewhere.example"))
        assert foreign.answer().status == 403


@pytest.mark.programs
@MAY_BE_LEFT_OUT
def test_pings_keep_an_idle_connection_open_beyond_the_proxys_timeout(proxy: Proxy) -> None:
    with proxy.peer() as alive, proxy.peer() as still:
        for peer, path in ((alive, "/alive"), (still, "/still")):
            peer.open(path, Host=proxy.host)
            assert peer.text().endswith("127.0.0.1")
        for _ in range(6):
            assert alive.frame().opcode is Opcode.PING
            alive.send(b"\x8a\x80\0\0\0\0")
        still_there(alive)
        if proxy.is_caddy:
            still_there(still)  # it has no such timeout
        else:
            assert still.rest() == b""  # no Close: a browser calls that 1006


@pytest.mark.programs
@MAY_BE_LEFT_OUT
def test_a_proxy_reload_affects_connections_as_documented(proxy: Proxy) -> None:
    with proxy.peer() as old, proxy.peer() as new:
        old.open("/alive", Host=proxy.host)
        assert old.text().endswith("127.0.0.1")
        proxy.reload()
        if proxy.is_caddy:
            while (frame := old.frame()).opcode is Opcode.PING:
                pass
            assert frame.opcode is Opcode.CLOSE
            # Caddy 2.6 writes the same unmasked Close (88 02 03 e9) to the server as well, which may not take it (RFC
            # 6455 section 5.1) and fails the connection: either Close may be the first that the client sees, no other.
            unmasked = (1002).to_bytes(2, "big") + b"expected a masked frame, got an unmasked one"
            assert bytes(frame.data) in ((1001).to_bytes(2, "big"), unmasked)
        else:
            still_there(old)
        new.open("/alive", Host=proxy.host)
        assert new.text().endswith("127.0.0.1")


@pytest.mark.programs
@MAY_BE_LEFT_OUT
@pytest.mark.parametrize("host", ["$proxy_host", "$host"])
def test_nginx_must_pass_the_host_with_its_port(host: str, upstream: int, tmp_path: Path) -> None:
    need("nginx")
    with nginx(tmp_path, upstream, ("$http_host", host)) as proxy, proxy.peer() as peer:
        peer.send(head("/", Host=proxy.host, Origin=f"https://{proxy.host}"))
        answer = peer.answer()
        assert answer.status == 403
        assert answer.body.startswith(b"expected the origin of host '")
