"""The protocol without any I/O: bytes and a time go in, messages and bytes come out.

Nothing in here opens a socket, reads a clock or starts a thread, and nothing but the standard
library is imported. The files are read in this order: states, limits, codes, events; headers, origin,
extensions, handshake; frames, deflate, flow, protocol; messages.
"""
