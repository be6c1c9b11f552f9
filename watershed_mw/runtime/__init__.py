"""Event loops, threads, timers and greenlets: what a connection runs on. Nothing here knows the protocol."""
