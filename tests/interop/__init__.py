"""Interoperability with third-party WebSocket programs, as client and as server, and with a browser."""
