"""Measurements, run by hand: `make bench`. Nothing here passes or fails."""
