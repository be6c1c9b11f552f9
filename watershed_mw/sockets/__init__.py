"""Streams: blocking sockets, detached sockets, TLS, and the streams of httpx."""
