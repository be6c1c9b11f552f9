"""Targets for forwarding: header fields, paths, URLs, origins, and proxies in the environment."""

from __future__ import annotations

import os
from unittest import mock
from urllib.parse import unquote, unquote_to_bytes

import httpx

from tests.fuzz.source import Source
from watershed_mw import HandshakeError
from watershed_mw.client.handshake import as_http_url, shown
from watershed_mw.client.route import as_proxy, by_environment
from watershed_mw.core.handshake.headers import Headers
from watershed_mw.core.handshake.origin import check_origin
from watershed_mw.proxy.headers import answer_fields, refusal_fields, request_fields
from watershed_mw.proxy.request import request_of_environ, request_of_scope
from watershed_mw.proxy.target import ProxyRequest, destination, parse_upstream

HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
FIELDS = (
    "Connection", "X-User", "X_User", "x-user", "X-Forwarded-For", "Forwarded", "X-Forwarded-Host", "TE", "Upgrade",
    "Cookie", "Host", "Keep-Alive", "Sec-WebSocket-Key", "Transfer-Encoding", "X-Forwarded_Proto", "Content-Length",
    "Proxy-Authorization", "X-Forwarded-Prefix",
)  # fmt: skip
SAID_ONCE = ("x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix", "x-forwarded-for", "forwarded", "host")
SEGMENTS = (
    "/", "//", ".", "..", "%2e", "%2E", "%2f", "%5c", "\\", ";", ";a", "%00", "a", "b", "%25", "?", "#", "%", "p", "/p",
    "%70", "é", "%c3%a9", "%c0%ae", " ", "%20", "%3b", "\t", "%09", "..;", "&", "=",
)  # fmt: skip
HOSTS = (
    "a.example", "b.a.example", "localhost", "127.0.0.1", "127.9.9.9", "10.1.2.3", "[::1]", "[fe80::1]", "192.168.0.1",
    "A.Example", "a.example.", "xn--bcher-kva.example",
)  # fmt: skip
EXCEPTIONS = (
    *HOSTS, ".a.example", "*.a.example", "*", "10.0.0.0/8", "192.168.0.0/33", "::1", "[::1]:80", "a.example:80",
    "a.example:443", "127.0.0.0/8", ":", "/", "", " ", "999.1.1.1", "fe80::/10", "é",
)  # fmt: skip


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _fields(source: Source) -> list[tuple[str, str]]:
    fields = [("host", "a.example")]
    for _ in range(source.integer(0, 6)):
        name = source.pick(FIELDS) if source.boolean() else source.text(8) or "x"
        if source.boolean():
            text = source.text(20)
        else:
            text = ", ".join([source.pick(FIELDS) for _ in range(source.integer(0, 4))])
        fields.append((name, text))
    return fields


def forwarding(source: Source) -> None:
    """Hop-by-hop fields are not forwarded, and only the proxy says who sent the request."""
    fields = _fields(source)
    client = source.text(12) if source.boolean() else source.pick(("1.2.3.4", "::1", ""))
    request = ProxyRequest(Headers(fields), "/p/x", "/p", "", source.boolean(), client)
    extra = httpx.Headers([("X-User", "alice")])
    out = request_fields(
        request, "up.example", "/p", keep_host=source.boolean(), drop=frozenset({"cookie"}), extra=extra
    )
    names = [_plain(name) for name, _ in out]
    assert [text for name, text in out if _plain(name) == "x-user"] == ["alice"], out
    assert not HOP_BY_HOP & {name.lower() for name, _ in out}, out
    assert "cookie" not in names, out
    assert "content-length" not in names, out
    for name in SAID_ONCE:
        assert names.count(name) == 1, (name, out)
    told = next(text for name, text in out if name.lower() == "x-forwarded-for")
    assert told.rpartition(",")[2].strip() == (client or "unknown").rpartition(",")[2].strip(), out
    answer, others = answer_fields(fields)
    for name, _ in (*answer[2:], *others, *refusal_fields(fields)):
        assert name.lower() not in HOP_BY_HOP, name


def paths(source: Source) -> None:
    """No path escapes the proxy's mount point or the upstream's base path."""
    raw = "/" + "".join([source.pick(SEGMENTS) for _ in range(source.integer(0, 10))])
    upstream = source.pick(("ws://u", "ws://u/", "ws://u/base", "ws://u/base/?k=1"))
    prefixes: tuple[bool | str, ...] = (True, False, "/p", "/")
    strip = source.pick(prefixes)
    request = _request_by_wsgi(source, raw) if source.boolean() else _request_by_asgi(raw)
    try:
        found = destination(upstream, request, strip)
    except HandshakeError as error:
        assert error.status in (400, 404), error.status
        return
    target = found.target
    assert target.startswith("/"), target
    assert target.isascii(), target
    assert not any(character <= " " or character == "\x7f" for character in target), target
    assert "#" not in target
    path = target.partition("?")[0]
    segments = unquote(path).replace("\\", "/").split("/")
    assert not any(segment.partition(";")[0] in (".", "..") for segment in segments), (raw, target)
    if upstream.startswith("ws://u/base"):
        assert path == "/base" or path.startswith("/base/"), (raw, target)


def _request_by_wsgi(source: Source, raw: str) -> ProxyRequest:
    path, _, query = raw.partition("?")
    # PEP 3333: bytes, decoded as ISO-8859-1.
    decoded = unquote_to_bytes(path).decode("latin-1")
    mounted = decoded.startswith("/p/")
    target = raw.encode().decode("latin-1") if source.boolean() else None
    environ = {
        "SCRIPT_NAME": "/p" if mounted else "",
        "PATH_INFO": decoded[2:] if mounted else decoded,
        "QUERY_STRING": query.encode().decode("latin-1"),
    }
    return request_of_environ(environ, Headers([("host", "x")]), target)


def _request_by_asgi(raw: str) -> ProxyRequest:
    path, _, query = raw.partition("?")
    scope = {
        "root_path": "/p" if unquote(path).startswith("/p/") else "",
        "raw_path": path.encode(),
        "path": unquote(path),
        "query_string": query.encode(),
    }
    return request_of_scope(scope, Headers([("host", "x")]))


def urls(source: Source) -> None:
    """A URL is accepted, or refused with a ValueError that hides its password; so are URLs of proxies and upstreams."""
    scheme = source.pick(("ws", "wss", "http", "https", "socks5", "unix", "WS", "file", ""))
    given = f"{scheme}:{source.pick(('//', '/', ''))}{source.pick(('', 'u:secret@'))}"
    given += source.pick(HOSTS) if source.boolean() else source.text(20)
    given += source.pick(("", ":80", ":0", ":99999", ":x", ":")) + source.pick(("", "/", "/p?q#f", "/é", "?", "#"))
    for read in (as_http_url, as_proxy, parse_upstream):
        if read is parse_upstream and scheme == "unix":
            continue  # a path has no password
        try:
            result = read(given)
        except ValueError as error:
            assert "secret" not in str(error), str(error)
        else:
            if isinstance(result, httpx.URL):
                assert result.scheme in ("http", "https")
                assert result.host
                assert "secret" not in shown(result)


def proxies(source: Source) -> None:
    """A proxy of the environment is used unless an exception names the host; an invalid one is a ValueError."""
    scheme, host = source.pick(("http", "https")), source.pick(HOSTS)
    url = httpx.URL(f"{scheme}://{host}" + source.pick(("", ":80", ":443", ":8080")) + "/")
    exceptions = [source.pick(EXCEPTIONS) for _ in range(source.integer(0, 3))]
    if source.rarely():
        exceptions.append(source.text(10).replace("\0", ""))
    joined = source.pick((",", ", ", " ,")).join(exceptions)
    value = source.pick(("http://proxy.example:3128", "proxy.example:3128", "socks5://proxy.example", ""))
    if source.rarely():
        value = source.text(12).replace("\0", "")
    environment = {source.pick((f"{scheme}_proxy", "all_proxy", f"{scheme.upper()}_PROXY", "ALL_PROXY")): value}
    environment[source.pick(("no_proxy", "NO_PROXY"))] = joined
    try:
        with mock.patch.dict(os.environ, environment, clear=True):
            found = by_environment(url)
    except UnicodeEncodeError:
        return  # no environment can hold it
    except ValueError:
        assert value not in ("http://proxy.example:3128", "proxy.example:3128", "socks5://proxy.example", "")
        return
    if host in ("a.example", "localhost") and host in exceptions:
        assert found is None, (environment, url)
    if not any(exceptions) and value == "http://proxy.example:3128":
        assert found is not None, (environment, url)
        assert found.url.host == "proxy.example"


def origins(source: Source) -> None:
    """An origin is allowed for one of the documented reasons, or refused with 403."""
    host = source.pick(HOSTS) + source.pick(("", ":80", ":443", ":8080"))
    scheme = source.pick(("http", "https", "capacitor"))
    authority = source.pick(HOSTS) + source.pick(("", ":80", ":443", "/", "?", "@a.example"))
    if source.rarely():
        authority = source.text(20)
    choices = ("*.a.example", "localhost:*", "null", "https://a.example")
    patterns = [source.pick(choices) for _ in range(source.integer(0, 2))]
    fields = Headers([("Host", host), ("Origin", f"{scheme}://{authority}")])
    try:
        check_origin(fields, patterns)
    except HandshakeError as error:
        assert error.status in (400, 403), error.status
        assert authority != host or scheme == "capacitor", (host, scheme, authority)
        return
    if not patterns:
        assert _with_port(authority, scheme) == _with_port(host, scheme), (host, scheme, authority)
    if not authority.isascii() or set(authority) & set("/?@ "):
        raise AssertionError(authority)


def _with_port(authority: str, scheme: str) -> str:
    ported = authority.rpartition("]")[2].partition(":")[1]
    return (authority if ported else f"{authority}:{443 if scheme == 'https' else 80}").lower()


TARGETS = (forwarding, paths, urls, proxies, origins)
