"""Home of the extension modules: C types (``*.pxd``) for modules of ``core``, and what comes of them.

There is no logic in here, and none may come: the sources are ``core/<name>.py``, the same files that run
interpreted. Nothing imports this package but ``watershed_mw._implementation``, which chooses.
"""
