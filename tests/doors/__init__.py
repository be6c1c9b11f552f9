"""The first three doors (issue 2, section 4): real servers on loopback, real clients, and rude ones."""
