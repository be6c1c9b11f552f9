"""A soak: every door under load for a while, with every kind of end, and nothing may be lost or left behind."""
