"""Stands in for the ``cython`` module where Cython is not installed: says that nothing is compiled."""

from __future__ import annotations

compiled = False
