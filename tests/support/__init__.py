"""Helpers that tests share: servers, clients and peers of every kind, and both builds of the package.

This module imports nothing that a server under test must not find loaded.
"""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LIMIT = 30.0
"""Seconds that a single step of a test may take. Generous, as the machine may be busy: reached only by what hangs."""
SOON = 8.0
"""Seconds that are less than any timeout of the package's own (10 and more): what takes longer has waited for one."""
