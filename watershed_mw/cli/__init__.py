"""The command line ``watershed-mw``: talk to a WebSocket server, be one that echoes, stand in front of one.

What it needs beside the package is the extra ``cli``; without it the one thing that works is to say so.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line of ``sys.argv``, and exit with its status: 0, 1 for a failure, 2 for wrong usage."""
    try:
        from .commands import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("click", "rich", "prompt_toolkit"):
            raise
        sys.exit(f"watershed-mw: expected the package {error.name}: pip install 'watershed-mw[cli]'")
    sys.exit(run(sys.argv[1:]))
