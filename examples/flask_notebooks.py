"""Everybody's own notebook server behind one login, in Flask: python examples/flask_notebooks.py [port].

GET /login?name=ann (or bob, or eve who has none) sets a cookie; ws://.../notebook/ then leads to the server of whoever
has it. The proxy relays bytes on the process's event loop; not one connection through it holds a thread.
"""

import itertools
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from flask import Flask, request, session
from flask.typing import ResponseReturnValue

from watershed_mw import HandshakeError, Watershed, WatershedWSGI
from watershed_mw.proxy import ProxyRequest, WebSocketProxy

app = Flask(__name__)
app.secret_key = "change me"
app.wsgi_app = WatershedWSGI(app.wsgi_app)  # type: ignore[method-assign]
shed = Watershed()


def start_notebook(owner: str) -> str:
    """A server of one user's, which numbers the cells that it gets; returns its URL."""
    numbers = itertools.count(1)

    class Notebook(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                conn = shed.accept(self, self.connection)
            except HandshakeError:
                return
            for cell in conn:
                conn.send(f"{owner}[{next(numbers)}]: {cell!s}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Notebook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"ws://127.0.0.1:{server.server_port}"


notebooks = {owner: start_notebook(owner) for owner in ("ann", "bob")}


@app.get("/login")
def login() -> str:
    session["name"] = request.args["name"]
    return "welcome"


def upstream_of(_: ProxyRequest) -> str | None:
    return notebooks.get(session["name"])  # None: a 404


# The session is between the browser and us.
proxy = WebSocketProxy(upstream_of, strip_prefix="/notebook", drop_headers=["cookie"])


@app.route("/notebook/", websocket=True)
@app.route("/notebook/<path:path>", websocket=True)
def notebook(path: str = "") -> ResponseReturnValue:
    if "name" not in session:
        return "log in first: /login?name=...\n", 401
    return proxy


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
