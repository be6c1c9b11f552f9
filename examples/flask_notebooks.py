"""A notebook server per user behind one login, in Flask: python examples/flask_notebooks.py [port].

GET /login?name=ann sets a cookie (also for bob, and for eve, who has no server); ws://.../notebook/ then leads to that
user's server. The proxy relays bytes on the background event loop; its connections occupy no thread.
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
    """Start a user's server, which numbers the cells that it receives; return its URL."""
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
    return notebooks.get(session["name"])  # None becomes a 404


# The session cookie is not meant for the upstream.
proxy = WebSocketProxy(upstream_of, strip_prefix="/notebook", drop_headers=["cookie"])


@app.route("/notebook/", websocket=True)
@app.route("/notebook/<path:path>", websocket=True)
def notebook(path: str = "") -> ResponseReturnValue:
    if "name" not in session:
        return "log in first: /login?name=...\n", 401
    return proxy


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
