"""Streams: blocking sockets, detached sockets, TLS, and httpx's network streams."""
