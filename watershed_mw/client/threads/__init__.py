"""The opening handshake on blocking sockets."""
