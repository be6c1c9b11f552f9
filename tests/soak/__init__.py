"""Soak testing: every integration under load for a while, with every kind of end; nothing may be lost or leak."""
