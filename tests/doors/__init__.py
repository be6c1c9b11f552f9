"""Every door: real servers on loopback, real clients, and rude ones."""
