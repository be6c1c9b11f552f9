"""Micro-benchmarks of the hot path and the opening handshake, on both builds: time, or instructions."""
