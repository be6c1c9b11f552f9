"""Options, usage errors, help, and the display of data."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import click
import pytest

from tests.conftest import RunPython
from tests.support.cli_server import HARMLESS, HOSTILE, connect
from watershed_mw import __version__
from watershed_mw.cli.commands import cli, run
from watershed_mw.cli.output import describe_end, dump, escape, shown, status_of

# --- usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["connect"], "Missing argument 'URL'"),
        (["connect", "host:80"], "expected a URL such as wss://host/path, got 'host:80'"),
        (["connect", "ws://x/", "--header", "no colon"], "expected 'Name: value', got 'no colon'"),
        (["connect", "ws://x/", "--header", "A: b\x1b[2J"], "expected 'Name: value', got 'A: b\\x1b[2J'"),
        (["connect", "ws://x/", "--header", "Upgrade: x"], "expected header fields besides those"),
        (["connect", "ws://x/", "--protocol", "a b"], "expected subprotocol names"),
        (["connect", "ws://x/", "--timeout", "0"], "0.0 is not in the range x>0"),
        (["connect", "ws://x/", "--proxy", "nowhere"], "expected a proxy's URL"),
        (["connect", "ws://x/", "--binary", "--hex"], "expected --binary or --hex, got both"),
        (["connect", "ws://x/", "--insecure", "--cacert", __file__], "expected --insecure or --cacert, got both"),
        (["connect", "ws://x/", "--cacert", __file__], "expected certificates in PEM form"),
        (["echo", "--listen", "8765"], "expected [HOST]:PORT"),
        (["echo", "--listen", "::1:8765"], "expected [HOST]:PORT"),
        (["echo", "--listen", ":65536"], "expected [HOST]:PORT"),
        (["echo", "--tls-key", __file__], "expected --tls-cert with --tls-key"),
        (["echo", "--tls-cert", __file__], "expected a certificate and its key in PEM form"),
        (["proxy", "--listen", ":0"], "Missing option '--to'"),
        (["proxy", "--to", "ws://x/"], "Missing option '--listen'"),
        (["echo", "--allow-host", "http://x"], "expected a host name such as app.example"),
        (["echo", "--allow-origin", "x y"], "expected an origin such as"),
        (["proxy", "--listen", ":0", "--to", "ws://x/", "--allow-host", "a:80"], "expected a host name"),
        (["proxy"], "Missing option '--"),
        (["proxy", "--listen", ":0", "--to", "nowhere"], "expected a URL, got 'nowhere'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_status_2(
    arguments: Sequence[str], told: str, proxied: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("watershed-mw: ")
    assert captured.err.endswith(" --help)\n")
    assert captured.err.count("\n") == 1
    assert told in captured.err


def test_an_address_in_use_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run(["echo", "--listen", where]) == 1
    assert capsys.readouterr().err == f"watershed-mw: cannot listen on {where}: Address already in use\n"


def test_an_invalid_proxy_in_the_environment_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "foo://x")
    done = connect("ws://127.0.0.1:9/")
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert "expected a proxy's URL" in line


def test_version_and_help_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"watershed-mw {__version__} (")
    for command in ([], ["connect"], ["echo"], ["proxy"]):
        assert run([*command, "--help"]) == 0
        assert "watershed-mw " + " ".join(command) in capsys.readouterr().out
    assert run([]) == 0


def test_missing_libraries_are_reported_with_the_extra_to_install(run_python: RunPython) -> None:
    for missing, command, told in (
        ("click", "echo", "expected the package click: pip install 'watershed-mw[cli]'"),
        ("httpx", "connect", "expected the package httpx: pip install 'watershed-mw[cli]'"),
        ("uvicorn", "echo", "expected the package uvicorn: pip install 'watershed-mw[cli,uvicorn]'"),
    ):
        said = run_python(
            "import sys\n"
            "class Hide:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            f"        if name == {missing!r}: raise ModuleNotFoundError(name, name=name)\n"
            "sys.meta_path.insert(0, Hide())\n"
            f"sys.argv = ['watershed-mw', {command!r}, *['ws://x/'] * ({command!r} == 'connect')]\n"
            "sys.stderr = sys.stdout\n"
            "import watershed_mw.cli\n"
            "try: watershed_mw.cli.main()\n"
            "except SystemExit as end: print(end)\n"
        )
        assert told in said


def test_every_option_has_help() -> None:
    for command in cli.commands.values():
        assert all(option.help for option in command.params if isinstance(option, click.Option))


# --- what is shown -------------------------------------------------------------------------------------------


def test_control_characters_are_escaped() -> None:
    assert escape(HOSTILE) == HARMLESS
    assert escape("a\nb\u2028") == "a\\nb\\u2028"
    plain = "käse\t日本\u3000\u00a0 👩\u200d👩 \u06cc\u200c\u062e"
    assert escape(plain) == plain
    assert shown("x" * 100_001).endswith("\n  ... and 1 more characters")
    assert all(
        escape(chr(code)).isprintable() for code in (*range(9), *range(10, 32), *range(127, 160), 0x202A, 0xD800)
    )


def test_a_dump_is_truncated() -> None:
    lines = list(dump(bytes(1000)))
    assert (len(lines), lines[-1]) == (17, "  ... and 744 more bytes")
    assert list(dump(b"")) == []


def test_close_codes_have_names() -> None:
    assert {code for code in range(1000, 5000) if not status_of(code)} == {1000, 1001, 1005}
    assert describe_end(1006, "") == "closed with 1006 (abnormal)"
    assert describe_end(1012, "a\x1b") == "closed with 1012 (service restart) a\\x1b"
    assert describe_end(3000, "") == "closed with 3000 (application)"
