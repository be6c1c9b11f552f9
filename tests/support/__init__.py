"""Code that tests share: servers, clients and peers of every kind, and both builds of the package.

This module imports only the standard library, so that nothing is preloaded into the servers under test.
"""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LIMIT = 30.0
"""Seconds that a single step of a test may take: generous, so that even on a busy machine only a hang reaches it."""
SOON = 8.0
"""Seconds, less than any of the package's timeouts (10 and more): anything slower has waited for one of them."""
