"""Conformance: the Autobahn test suite against every integration of the package, on both builds.

Run it with ``python -m tests.autobahn``. The verdicts are Autobahn's own: nothing here evaluates a frame, and a case
that did not run never counts as passed.
"""
