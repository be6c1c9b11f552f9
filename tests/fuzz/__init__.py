"""Fuzzing: targets, their seeds, and the two drivers that run them. See README.md."""
