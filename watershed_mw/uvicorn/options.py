"""Converts uvicorn's settings and a protocol class's options to settings of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from ..options import ConnectionOptions, Options, Settings

if TYPE_CHECKING:
    from uvicorn.config import Config

__all__ = ["check_class_options", "options_of", "options_under", "settings_of"]

_settings: WeakKeyDictionary[Config, dict[type, Settings]] = WeakKeyDictionary()


def options_of(config: Config) -> Options:
    """Uvicorn's ``--ws-*`` settings as options of this package."""
    return {
        "max_message_size": config.ws_max_size or None,
        "max_queued_messages": max(1, config.ws_max_queue),
        "ping_interval": config.ws_ping_interval or None,
        "ping_timeout": config.ws_ping_timeout or None,
        "compression": bool(config.ws_per_message_deflate),
        # The application checks origins itself, unless it uses WatershedASGI.
        "origins": "*",
    }


def check_class_options(kind: type, options: Mapping[str, Any]) -> None:
    """Check the names in the ``options`` of a protocol class.

    Raises:
        TypeError: an option is unknown, or is not a connection option.
    """
    if unknown := options.keys() - ConnectionOptions.__optional_keys__:
        raise TypeError(
            f"expected {kind.__name__}.options among {', '.join(sorted(ConnectionOptions.__optional_keys__))}; "
            f"got {', '.join(sorted(unknown))}: origins, protocols and max_connections belong to WatershedASGI"
        )


def options_under(config: Config, kind: type, options: ConnectionOptions) -> Options:
    """Uvicorn's settings, overridden by the ``options`` of a protocol class. Raises as :func:`check_class_options`."""
    check_class_options(kind, options)  # they may have been set after the class was created
    return cast(Options, {**options_of(config), **options})


def settings_of(config: Config, kind: type, options: ConnectionOptions) -> Settings:
    """As :func:`options_under`, checked; computed once per configuration and class.

    Raises:
        TypeError, ValueError: an option is unknown or has an invalid value.
    """
    known = _settings.get(config)
    if known is None:
        known = _settings[config] = {}
    settings = known.get(kind)
    if settings is None:
        settings = known[kind] = Settings.of(options_under(config, kind, options))
    return settings
