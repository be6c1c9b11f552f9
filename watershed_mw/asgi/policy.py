"""The options by which a middleware checks and accepts upgrades."""

from __future__ import annotations

from typing import Any, cast
from weakref import WeakKeyDictionary

from ..options import ConnectionOptions, Options, Settings
from ..watershed import Watershed

__all__ = ["UpgradePolicy"]


class UpgradePolicy:
    """A middleware's options, which override those of the server.

    Args:
        options: see :class:`~watershed_mw.Options`.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.shed = Watershed(**options)
        self._native: WeakKeyDictionary[object, Settings] = WeakKeyDictionary()

    def settings_under(self, door: Any, options: ConnectionOptions) -> Settings:
        """Merge options: those of one accept override the middleware's, which override those of uvicorn's class."""
        if options:
            return Settings.of(cast(Options, {**door.options, **self.options, **options}))
        settings = self._native.get(door.key)
        if settings is None:
            settings = self._native[door.key] = Settings.of(cast(Options, {**door.options, **self.options}))
        return settings

    def settings(self, options: ConnectionOptions) -> Settings:
        """Merge options: those of one accept override the middleware's."""
        return Settings.of(cast(Options, {**self.options, **options}))
