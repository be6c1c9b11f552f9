"""Streams: blocking sockets, sockets that a server gave up, TLS over either."""
