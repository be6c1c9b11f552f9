"""The asyncio flavour: waiting is awaited."""
