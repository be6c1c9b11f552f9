"""A threaded WSGI server that reports and handles signals; its argument says how.

``plain``: the main thread accepts connections. ``off``: the same, without the door's handlers. ``own``: the same, with
a handler of the program's for SIGTERM. ``blocked``: the main thread waits for ever, and the server runs in another.
``explicit``: the same, once the handlers have been installed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from socketserver import BaseServer
from typing import Any

from werkzeug.serving import make_server

from tests.support.wsgi_servers_app import report
from watershed_mw import ThreadConnection, WatershedWSGI
from watershed_mw.wsgi import install_signal_handlers

NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def state() -> str:
    """Names of the signals that have a non-default handler."""
    usual = (signal.SIG_DFL, signal.default_int_handler)
    return json.dumps([number.name for number in NUMBERS if signal.getsignal(number) not in usual])


def fork_and_terminate() -> str:
    """How a child that gets a SIGTERM ends."""
    ready, child_is_ready = os.pipe()
    if (child := os.fork()) == 0:
        os.write(child_is_ready, b"!")
        while True:
            signal.pause()
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(ready)
    os.close(child_is_ready)
    return json.dumps(code)


def talk(connection: ThreadConnection) -> None:
    """Do what a message asks for."""
    answers: dict[str, Callable[[], str]] = {"state": state, "fork": fork_and_terminate}
    connection.on("text", lambda message: connection.send(answers[message]()))
    connection.run_in_background()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Handle one request."""
    talk(environ["watershed"].accept())
    return []


def main(way: str) -> None:
    """Serve until a signal ends the program; a KeyboardInterrupt is printed and does not end it."""
    if way == "own":
        signal.signal(signal.SIGTERM, lambda number, frame: report("own handler"))
    options: dict[str, Any] = {"install_signal_handlers": False} if way == "off" else {}
    server = make_server("127.0.0.1", 0, WatershedWSGI(application, **options), threaded=True)
    report("before", state())
    if way == "explicit":
        install_signal_handlers()
    if way in ("blocked", "explicit"):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        report(f"http://127.0.0.1:{server.server_port}")
        threading.Event().wait()
    report(f"http://127.0.0.1:{server.server_port}")
    while True:
        try:
            BaseServer.serve_forever(server)  # werkzeug's own swallows the exception, and closes the server
        except KeyboardInterrupt:
            report("KeyboardInterrupt")


if __name__ == "__main__":
    main(sys.argv[1])
