"""Event loops, threads, timers and greenlets, independent of the protocol."""
