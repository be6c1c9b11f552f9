"""Stands in for the ``cython`` module where Cython is not installed; reports the interpreted build."""

from __future__ import annotations

compiled = False
