"""A message for many connections, encoded and compressed once.

A server's frames are not masked, so their bytes are the same for every client; so are those of a compressed message
that does not refer to earlier ones (RFC 7692 section 7.2.1). This file is compiled as well as interpreted.
"""

from __future__ import annotations

from .codes import encode_text
from .deflate import Deflate, compress_with, new_deflater
from .frames.codec import encode_frame

__all__ = ["PreparedMessage"]

_TEXT = 0x1
_BINARY = 0x2
_FIN = 0x80
_FIN_RSV1 = 0xC0


class PreparedMessage:
    """A message and its encoded frames.

    Args:
        message: ``str`` for TEXT, ``bytes`` for BINARY.

    Raises:
        LocalProtocolError: the text contains a lone surrogate, which UTF-8 cannot encode.
    """

    def __init__(self, message: str | bytes) -> None:
        self.message = message
        if isinstance(message, str):
            self.opcode = _TEXT
            self.payload = encode_text(message)
        else:
            self.opcode = _BINARY
            self.payload = message
        self._plain = b""
        self._compressed: dict[tuple[int, int, int], bytes] = {}

    def plain(self) -> bytes:
        """A server's frame of the uncompressed message."""
        if not self._plain:
            self._plain = encode_frame(self.opcode, self.payload, None, _FIN)
        return self._plain

    def compressed(self, deflate: Deflate) -> bytes:
        """A server's frame of the message, compressed with the settings of ``deflate``, whose context is reset."""
        deflate.reset_context()
        settings = (deflate.level, deflate.local_bits, deflate.memory_level)
        frame = self._compressed.get(settings)
        if frame is None:
            payload = compress_with(new_deflater(*settings), self.payload)
            frame = self._compressed[settings] = encode_frame(self.opcode, payload, None, _FIN_RSV1)
        return frame
