"""The names that a server answers to (RFC 9110 section 7.2)."""

from __future__ import annotations

import pytest

from watershed_mw.http.hosts import HostList


@pytest.mark.parametrize(
    "host, allowed",
    [
        *((host, True) for host in ("localhost", "LOCALHOST:8080", "localhost.", "app.localhost:1")),
        *((host, True) for host in ("127.0.0.1:80", "[::1]", "192.0.2.1", "[2001:db8::1]:1")),
        *((host, True) for host in ("app.example", "App.Example.:443", "a.b.example", "x.a.b.example:80")),
        *((host, False) for host in ("evil.example", "b.example", "xapp.example", "app.example.evil", "xb.example")),
        *(
            (host, False)
            for host in ("", "localhost@evil", "localhost.evil", "127.0.0.1.evil", "127.1", "0x7f000001", "[v1.x]")
        ),
    ],
)
def test_addresses_and_names_of_this_machine_are_allowed(host: str, allowed: bool) -> None:
    assert HostList(["App.example", "*.b.example"]).allows(host) is allowed


def test_a_star_allows_every_name_and_nothing_else() -> None:
    assert HostList("*").allows("any.example:1")
    assert not HostList("*").allows("a evil")


@pytest.mark.parametrize("name", ["", "a b", "http://a", "a:80", "*.", "a.*", "**", "[::1]"])
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a host name"):
        HostList([name])
