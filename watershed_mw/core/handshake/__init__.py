"""The opening handshake (RFC 6455 section 4), and what it negotiates."""
