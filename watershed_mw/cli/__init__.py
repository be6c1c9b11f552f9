"""The command line ``watershed-mw``: a WebSocket client, an echo server and a proxy.

It needs the extra ``cli``; without it, the program only reports what to install.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line of ``sys.argv``, and exit with its status: 0, 1 after a failure, 2 after a usage error."""
    try:
        from .commands import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("click", "rich", "prompt_toolkit"):
            raise
        sys.exit(f"watershed-mw: expected the package {error.name}: pip install 'watershed-mw[cli]'")
    sys.exit(run(sys.argv[1:]))
