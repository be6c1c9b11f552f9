"""The application of the WSGI server tests, and the servers that have no command of their own.

Run as a module, this is such a server: ``python -m tests.support.wsgi_servers_app KIND ADDRESS``. It prints a line for
everything that happens to its connections, because a worker process has no other channel to the test. The imports at
the top are limited to modules that may be imported before gevent or eventlet patches the process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from os import write  # before eventlet patches it, and lets only one greenlet write at a time
from typing import TYPE_CHECKING, Any, TypeAlias

from tests.support import LIMIT

if TYPE_CHECKING:
    import ssl

    from watershed_mw import AsyncConnection, ThreadConnection, WatershedWSGI

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Any]


class DeliberateError(Exception):
    """Raised by handlers on purpose: any other traceback in a log is a failure."""


def report(*words: object) -> None:
    """Print one line in one write, even if others print at the same time."""
    write(1, (" ".join(map(str, words)) + "\n").encode())


def threads() -> int:
    """The number of threads of this process, including those not started by Python."""
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else threading.active_count()


def names() -> list[str]:
    """The names of Python's threads."""
    return [thread.name for thread in threading.enumerate()]


# --- the handlers: of a path, and one word of the query string that names the connection in what is printed ---


def _told(connection: ThreadConnection, word: str) -> None:
    """Print the end of a connection."""
    connection.on("end", lambda code, reason: report("ended", word, code, reason))


def _answer(message: str | bytes) -> tuple[str, int] | None:
    """What a message asks of its handler: None to echo it, or a reason and a code to close with."""
    if isinstance(message, str) and message.startswith("raise"):
        raise DeliberateError("x" * int(message[5:] or 0))
    if message == "exit":
        sys.exit(3)
    if isinstance(message, str) and message.startswith("end "):
        return "that was all", int(message[4:])
    return None


def _accepted(upgrade: Any, word: str) -> ThreadConnection:
    """Accept the upgrade; connections for "alive" have enough time to answer a PING on a busy machine."""
    connection: ThreadConnection = upgrade.accept(**({"ping_timeout": 30.0} if word == "alive" else {}))
    return connection


def blocking(upgrade: Any, word: str) -> None:
    """An echo that occupies its thread."""
    connection = _accepted(upgrade, word)
    _told(connection, word)
    for message in connection:
        if end := _answer(message):
            connection.end(end[0], code=end[1])
        else:
            connection.send(message)
    report("returned", word)


def background(upgrade: Any, word: str) -> None:
    """An echo with event handlers, which frees its thread."""
    connection = _accepted(upgrade, word)
    _told(connection, word)

    def echo(message: str | bytes) -> None:
        if end := _answer(message):
            connection.end(end[0], code=end[1])
        else:
            connection.send(message)

    connection.on("text", echo)
    connection.on("binary", echo)
    connection.run_in_background()


def coroutine(upgrade: Any, word: str) -> None:
    """An echo with a coroutine on the process's loop."""
    connection = _accepted(upgrade, word)
    _told(connection, word)

    async def echo(inner: AsyncConnection) -> None:
        async for message in inner:
            if end := _answer(message):
                inner.end(end[0], code=end[1])
            else:
                await inner.send(message)

    connection.run_in_background(echo)


def choosing(upgrade: Any, word: str) -> None:
    """Accept with a subprotocol, and with additional headers on the 101."""
    with upgrade.accept(["b", "c"], headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Own", "yes")]) as chosen:
        chosen.send(f"{chosen.protocol} {word}")


def detached(upgrade: Any, word: str) -> None:
    """A raw socket: echo its bytes, behind a prefix, until it ends."""
    sock = upgrade.accept(detached=True)

    def talk() -> None:
        with sock:
            sock.settimeout(LIMIT)
            while data := sock.recv(100):
                sock.sendall(b"raw:" + data)
        report("closed", word)

    if word.startswith("here"):
        talk()
    else:
        # The request ends first, so that the server is done with the socket that it believes to own.
        threading.Thread(target=talk).start()


def flooding(upgrade: Any, word: str) -> None:
    """Send until a send has to wait for the peer, report how many have not had to, and end."""
    connection = upgrade.accept()
    _told(connection, word)

    async def flood(inner: AsyncConnection) -> None:
        import asyncio

        sent = 0
        try:
            while True:
                await asyncio.wait_for(inner.send(b"x" * 65536), 0.5)
                sent += 1
        except TimeoutError:
            report("held", word, sent)
            inner.end("that was all", code=4001)

    connection.run_in_background(flood)


def busy(upgrade: Any, word: str) -> None:
    """Receive one message, and the others only when the application's process is told to."""
    connection = upgrade.accept()
    _told(connection, word)

    def take(message: str | bytes) -> None:
        report("took", word, len(message))
        _resume.wait(LIMIT)

    connection.on("binary", take)
    connection.run_in_background()


_resume = threading.Event()


def limited(upgrade: Any, word: str) -> None:
    """A handler that a timeout of the server's green threads ends."""
    kind = "eventlet" if "eventlet" in sys.modules else "gevent"
    connection = _accepted(upgrade, word)
    _told(connection, word)
    connection.on("text", connection.send)
    with import_module(kind).Timeout(0.3, False):
        connection.run()
    connection.end("time is up")
    report("returned", word)


def forking(upgrade: Any, word: str) -> None:
    """An echo that forks child processes, as handlers with ``os.fork`` or multiprocessing do."""
    connection = upgrade.accept()
    _told(connection, word)
    for message in connection:
        connection.send(_fork(message, connection))


def forking_background(upgrade: Any, word: str) -> None:
    """The same, from the thread pool."""
    connection = upgrade.accept()
    _told(connection, word)
    connection.on("text", lambda message: connection.send(_fork(message, connection)))
    connection.run_in_background()


def _fork(message: str, connection: ThreadConnection) -> str:
    if message == "fork":
        if (child := os.fork()) == 0:
            os._exit(3)
        return f"exit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}"
    if message in ("process", "stay"):
        import multiprocessing

        target = _use_a_loop if message == "process" else _stay
        process = multiprocessing.get_context("fork").Process(target=target, args=(connection,))
        process.start()
        if message == "stay":
            return f"child {process.pid}"
        process.join()
        return f"exit {process.exitcode}"
    return message


def _use_a_loop(connection: ThreadConnection) -> None:
    """In the child: start a loop of its own if asked to; the inherited connections must not be affected."""
    import gc

    from watershed_mw.runtime.loop_thread import background_loop

    loop, _ = background_loop()
    ran = threading.Event()
    loop.call_soon_threadsafe(ran.set)
    del connection
    gc.collect()
    ran.wait(LIMIT)
    # Not sys.exit: in a child that a thread of a pool has forked, concurrent.futures fails to join that very thread.
    os._exit(4 if ran.is_set() else 5)


def _stay(connection: ThreadConnection) -> None:
    """A child that keeps all inherited descriptors open until the test kills it."""
    _never.wait(60)


HANDLERS = {
    "/blocking": blocking,
    "/background": background,
    "/async": coroutine,
    "/choosing": choosing,
    "/detached": detached,
    "/flooding": flooding,
    "/busy": busy,
    "/limited": limited,
    "/forking": forking,
    "/forking-background": forking_background,
}


def respond(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Handle one request."""
    path, word = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
    upgrade = environ.get("watershed")
    if upgrade is not None and path == "/reject":
        rejection: Iterable[bytes] = upgrade.reject(401, b"who are you?", [("WWW-Authenticate", "Basic")])(
            environ, start_response
        )
        return rejection
    if upgrade is not None and path in HANDLERS:
        HANDLERS[path](upgrade, word)
        return []
    if upgrade is not None and path.startswith("/proxied"):
        from watershed_mw.proxy import WebSocketProxy

        return WebSocketProxy(f"ws://127.0.0.1:{word}")(environ, start_response)  # type: ignore[no-any-return]
    if path == "/resume":
        _resume.set()
    pages = {
        "/resume": "resumed",
        "/page": "page",
        "/pid": str(os.getpid()),
        "/process": json.dumps({"pid": os.getpid(), "threads": threads(), "names": names()}),
        "/upgrade": str(upgrade is not None),
    }
    body = pages.get(path, "nothing here").encode()
    status = "200 OK" if path in pages else "404 Not Found"
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def create(**options: Any) -> WatershedWSGI:
    """The application behind the middleware, with these options."""
    from watershed_mw import WatershedWSGI
    from watershed_mw.wsgi import shutdown

    shutdown._GRACE = float(os.environ.get("WATERSHED_MW_TEST_GRACE", shutdown._GRACE))
    return WatershedWSGI(respond, **options)


def master_first() -> WatershedWSGI:
    """The same, from a process that has a connection of its own before it forks its workers (``--preload``).

    It prints what that connection gets, for as long as it lives.
    """
    import socket

    from tests.support.peers import head, text
    from watershed_mw import Watershed

    ours, theirs = socket.socketpair()
    connection: ThreadConnection = Watershed().accept(head(), theirs)
    connection.on("text", lambda message: report("master got", message, "in", os.getpid()))
    connection.on("end", lambda code, reason: report("master ended", code, "in", os.getpid()))
    connection.run_in_background()
    owner = os.getpid()

    def keep_talking() -> None:
        number = 0
        while True:
            number += 1
            ours.sendall(text(f"{number}"))
            _never.wait(0.02)

    threading.Thread(target=keep_talking, daemon=True).start()
    report("master is", owner)
    return create()


_never = threading.Event()


# --- servers that have no command of their own ------------------------------------------------------------


def _tls(certificate: str) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def _run_django(app: Any, port: int, *, threading: bool) -> None:
    """``manage.py runserver`` for a project whose WSGI application is this one."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    import tests.support.wsgi_servers_app as found_by_name  # not this module, which runs as __main__

    vars(found_by_name)["application"] = app
    settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="-", WSGI_APPLICATION=f"{found_by_name.__name__}.application")
    django.setup()
    call_command("runserver", f"127.0.0.1:{port}", use_reloader=False, use_threading=threading, skip_checks=True)


def serve(kind: str, port: int, certificate: str | None, options: dict[str, Any]) -> None:
    """Serve on this port until a signal arrives; ``kind`` as in ``wsgi_servers.py``."""
    if kind == "pywsgi-patched":
        import_module("gevent.monkey").patch_all()
    elif kind == "eventlet":
        sys.modules["trio"] = None  # type: ignore[assignment]  # httpcore would import it, and it cannot bear the patches
        import_module("eventlet").monkey_patch()
    app: Any = create(**options)
    if kind.startswith("werkzeug"):
        from werkzeug.serving import run_simple

        ways: dict[str, dict[str, Any]] = {
            "werkzeug": {"threaded": True},
            "werkzeug-single": {},
            "werkzeug-processes": {"processes": 8},
            "werkzeug-debugger": {"threaded": True, "use_reloader": True, "use_debugger": True},
        }
        run_simple("127.0.0.1", port, app, ssl_context=_tls(certificate) if certificate else None, **ways[kind])
    elif kind == "wsgiref":
        from wsgiref.simple_server import make_server

        with make_server("127.0.0.1", port, app) as server:
            if certificate:
                server.socket = _tls(certificate).wrap_socket(server.socket, server_side=True)
            server.serve_forever()
    elif kind.startswith("django"):
        _run_django(app, port, threading=kind == "django")
    elif kind.startswith("pywsgi"):
        server_class = import_module("gevent.pywsgi").WSGIServer
        server_class(("127.0.0.1", port), app, **({"certfile": certificate} if certificate else {})).serve_forever()
    elif kind == "waitress":
        import_module("waitress").serve(app, host="127.0.0.1", port=port)
    elif kind == "cheroot":
        from cheroot.ssl.builtin import BuiltinSSLAdapter
        from cheroot.wsgi import Server

        cheroot = Server(("127.0.0.1", port), app)
        if certificate:
            cheroot.ssl_adapter = BuiltinSSLAdapter(certificate, certificate)
        try:
            cheroot.start()
        finally:
            cheroot.stop()
    elif kind == "eventlet":
        eventlet = import_module("eventlet")
        listener = eventlet.listen(("127.0.0.1", port))
        if certificate:
            listener = eventlet.wrap_ssl(listener, certfile=certificate, server_side=True)
        import_module("eventlet.wsgi").server(listener, app)
    elif kind == "a2wsgi":
        import uvicorn
        from a2wsgi import WSGIMiddleware

        # With a WebSocket class an upgrade never reaches the bridge.
        uvicorn.run(WSGIMiddleware(app), port=port, ws="none")
    elif kind == "uvicorn-wsgi":
        import uvicorn

        uvicorn.run(app, port=port, ws="none", interface="wsgi")
    elif kind == "hypercorn-wsgi":
        import asyncio

        from hypercorn.asyncio import serve as run
        from hypercorn.config import Config

        config = Config()
        config.bind = [f"127.0.0.1:{port}"]
        asyncio.run(run(app, config, mode="wsgi"))
    else:
        raise ValueError(f"expected a kind of server, got {kind!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("port", type=int)
    parser.add_argument("--certificate")
    parser.add_argument("--options", type=json.loads, default={})
    arguments = parser.parse_args()
    serve(arguments.kind, arguments.port, arguments.certificate, arguments.options)
