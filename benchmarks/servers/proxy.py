"""The proxy as an application, for uvicorn and for gunicorn alike; $UPSTREAM is the port behind it."""

from __future__ import annotations

import os

from watershed_mw.proxy import WebSocketProxy

app = WebSocketProxy(f"ws://127.0.0.1:{os.environ['UPSTREAM']}")
