"""_native/malloc.py: from its first connection on, a process keeps large blocks; and the switch for that."""

from __future__ import annotations

import platform

import pytest

from tests.conftest import RunPython

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")

# Prints, before and after the first connection, whether a large block is mapped by itself.
PROGRAM = """
import ctypes, socket
from tests.support.wire_peer import request_head
from watershed_mw import Watershed
from watershed_mw.core.protocol import Protocol
from watershed_mw.core.states import Role

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

class Statistics(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

def is_mapped():
    libc.mallinfo2.restype = Statistics
    before = libc.mallinfo2().hblks
    assert libc.malloc(ctypes.c_size_t(3 * 2**20))  # never freed: malloc would learn from it
    return libc.mallinfo2().hblks > before

Protocol(Role.SERVER, 0.0)
print(is_mapped())
ours, theirs = socket.socketpair()
connection = Watershed().accept(request_head(), ours)
print(is_mapped())
theirs.close()
connection.end()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "switch, mapped", [(None, False), ("1", False), ("0", True)], ids=["by default", "switched on", "switched off"]
)
def test_a_process_with_a_connection_keeps_large_blocks(
    run_python: RunPython, switch: str | None, mapped: bool
) -> None:
    seen = run_python(PROGRAM, WATERSHED_MW_MALLOC=switch).split()
    assert seen == ["True", str(mapped)]


@pytest.mark.slow
def test_environment_settings_take_precedence(run_python: RunPython) -> None:
    seen = run_python(PROGRAM, MALLOC_MMAP_THRESHOLD_=str(2**20)).split()
    assert seen == ["True", "True"]
