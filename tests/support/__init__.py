"""Helpers that tests share: servers, clients and peers of every kind, and both builds of the package.

This module imports nothing that a server under test must not find loaded.
"""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LIMIT = 10.0
"""Seconds that any single step of a test may take. Generous: reached only when something hangs."""
