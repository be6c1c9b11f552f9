"""A WSGI server of ``wsgi_servers_app.py`` on a platform without the features that Windows lacks.

Run as a module, with the same arguments. Everything that the C modules lack on Windows is removed before the standard
library looks for it; the platform's name changes after the standard library has used it.
"""

from __future__ import annotations

import _socket
import os
import select
import signal
import sys
from importlib import import_module
from typing import Any

__all__: list[str] = []

# What the documentation of the standard library says is not available on Windows; methods of C types cannot be hidden.
_MISSING: dict[Any, tuple[str, ...]] = {
    _socket: ("socketpair", "AF_UNIX", "MSG_DONTWAIT", "CMSG_LEN", "CMSG_SPACE", "SO_REUSEPORT"),
    os: ("register_at_fork", "fork", "getppid", "sendfile"),
    select: ("poll", "epoll", "kqueue"),
    signal: ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGALRM", "setitimer"),
}
# Modules that Windows lacks, one that is not built for it, and one that would call Windows itself.
_NO_MODULES = ("fcntl", "termios", "tty", "resource", "uvloop", "trio")
# Modules that check the platform's name on import, and must see the real one.
_CHOOSING = ("asyncio", "socket", "ssl", "subprocess", "threading", "http.server", "h11", "httpx")
_OURS = ("watershed_mw", "watershed_mw.connection.threads.background", "watershed_mw.proxy")


def _hide() -> None:
    for module, names in _MISSING.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in _NO_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # an import of it fails
    for name in _CHOOSING:
        import_module(name)
    here = sys.platform
    sys.platform = "win32"
    for name in _OURS:
        import_module(name)
    sys.platform = here  # for all other modules


if __name__ == "__main__":
    _hide()
    import runpy

    runpy.run_module("tests.support.wsgi_servers_app", run_name="__main__", alter_sys=True)
