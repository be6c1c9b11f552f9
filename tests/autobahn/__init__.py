"""Conformance: the Autobahn test suite against every door of the package, on both builds.

``python -m tests.autobahn`` runs it. The verdicts are Autobahn's own: nothing here judges a frame, and a case
that did not run is never counted as passed.
"""
