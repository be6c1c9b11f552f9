"""The options that a middleware decides upgrades by."""

from __future__ import annotations

from typing import Any, cast
from weakref import WeakKeyDictionary

from ..options import ConnectionOptions, Options, Settings
from ..watershed import Watershed

__all__ = ["UpgradePolicy"]


class UpgradePolicy:
    """What a middleware decides upgrades by: its options, which override those of the server.

    Args:
        options: see :class:`~watershed_mw.Options`.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.shed = Watershed(**options)
        self._native: WeakKeyDictionary[object, Settings] = WeakKeyDictionary()

    def settings_under(self, door: Any, options: ConnectionOptions) -> Settings:
        """The options of one accept over those of the middleware, and these over those of the native door."""
        if options:
            return Settings.of(cast(Options, {**door.options, **self.options, **options}))
        settings = self._native.get(door.key)
        if settings is None:
            settings = self._native[door.key] = Settings.of(cast(Options, {**door.options, **self.options}))
        return settings

    def settings(self, options: ConnectionOptions) -> Settings:
        """The options of one accept over those of the middleware."""
        return Settings.of(cast(Options, {**self.options, **options}))
