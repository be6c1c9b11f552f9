"""Interoperability with WebSocket programs that nobody here wrote, on either side, and with a browser."""
