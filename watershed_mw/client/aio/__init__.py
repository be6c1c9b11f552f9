"""The opening handshake on asyncio."""
