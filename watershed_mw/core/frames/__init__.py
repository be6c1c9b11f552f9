"""Frames (RFC 6455 section 5): read, written, and looked for in bytes that are relayed."""
