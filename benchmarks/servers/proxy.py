"""The proxy as an application, for both uvicorn and gunicorn; $UPSTREAM is the port of the upstream."""

from __future__ import annotations

import os

from watershed_mw.proxy import WebSocketProxy

app = WebSocketProxy(f"ws://127.0.0.1:{os.environ['UPSTREAM']}")
