"""An echo server in Flask: python examples/wsgi_echo.py [port]."""

import sys

from flask import Flask, request

from watershed_mw import WatershedWSGI

app = Flask(__name__)
app.wsgi_app = WatershedWSGI(app.wsgi_app, protocols=["echo.watershed"])  # type: ignore[method-assign]


@app.route("/", websocket=True)
def echo() -> str:
    conn = request.environ["watershed"].accept()
    for message in conn:
        conn.send(message)
    return ""  # discarded: the 101 has already been sent


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
