"""All options, their defaults and their checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, TypedDict, cast

from .connection.base import Trace
from .core.codes import encode_close
from .core.handshake.extensions import DeflateOptions
from .core.handshake.negotiation import check_subprotocols
from .core.handshake.origin import check_origins
from .core.limits import Limits
from .errors import LocalProtocolError

__all__ = ["ClientOptions", "ConnectionOptions", "Options", "Settings", "check_connection_options", "check_options"]


class ClientOptions(TypedDict, total=False):
    """The options of a client's connection; see :class:`Options`."""

    compression: bool | DeflateOptions
    trace: Trace | None
    max_message_size: int | None
    max_fragments: int
    max_message_rate: float | None
    message_timeout: float | None
    max_compression_ratio: float | None
    max_inflate_rate: float
    ping_interval: float | None
    ping_timeout: float | None
    close_timeout: float
    reply_timeout: float
    max_queued_messages: int
    max_queued_bytes: int
    max_memory: float | None
    max_unsent_bytes: int


class ConnectionOptions(ClientOptions, total=False):
    """The options that can be set for one accepted connection; see :class:`Options`."""

    shutdown_code: int | None


class Options(ConnectionOptions, total=False):
    """Every option of :class:`Watershed`, of the middlewares and of the server classes.

    protocols: subprotocols that the server supports, in any order; compared case-sensitively.
    origins: origins allowed besides the request's own host, such as ``"https://a.example"``,
        ``"*.b.example"`` or ``"localhost:*"``; ``"*"`` allows every origin. Default None: same origin only.
    max_connections: maximum concurrent connections and undecided requests of one middleware, per process; further
        requests are refused with 503. Default 65,536; None for no limit. ``Watershed`` itself has no limit.
    compression: True (the default) for permessage-deflate with modest memory, False for none, or
        :class:`~watershed_mw.DeflateOptions`.
    shutdown_code: close code for connections when the server stops. Default 1012 under uvicorn, 1001 for WSGI; None
        makes the WSGI middleware leave connections and signals alone.
    install_signal_handlers: whether the WSGI middleware, from its first connection on, catches SIGTERM, SIGHUP and
        SIGINT if no other handler is installed. Default True; no effect elsewhere.
    trace: called as ``trace(probe, connection, data)`` at ``start``, ``end``, ``read-buffer``, ``recv-*``
        and ``send-*``; None (the default) costs nothing.

    All others are limits; :class:`~watershed_mw.Limits` documents them and their defaults.
    """

    protocols: Sequence[str] | None
    origins: str | Sequence[str] | None
    max_connections: int | None
    install_signal_handlers: bool


# Half a GiB at 8 KiB each, and as many connections as a reverse proxy has ports.
_MAX_CONNECTIONS = 2**16


_LIMITS = frozenset(item.name for item in fields(Limits))


@dataclass(frozen=True, slots=True)
class Settings:
    """The options, checked and with defaults filled in.

    Raises:
        TypeError: an option is unknown.
        ValueError: an option has an invalid value.
    """

    protocols: tuple[str, ...]
    origins: str | tuple[str, ...] | None
    deflate: DeflateOptions | None
    trace: Trace | None
    limits: Limits
    max_connections: int | None
    shutdown_code: int | None
    """0 for the default of the server class or middleware."""
    install_signal_handlers: bool

    @classmethod
    def of(cls, options: Options) -> Settings:
        """Check these options and fill in the defaults."""
        check_options(options, Options.__optional_keys__)
        most: Any = options.get("max_connections", _MAX_CONNECTIONS)
        if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
            raise ValueError(f"expected max_connections as a whole number above 0, or None, got {most!r}")
        compression = options.get("compression", True)
        if not isinstance(compression, (bool, DeflateOptions)):
            raise ValueError(f"expected compression to be True, False or DeflateOptions(...), got {compression!r}")
        given: dict[str, Any] = {name: value for name, value in options.items() if name in _LIMITS}
        return cls(
            protocols=check_subprotocols(options.get("protocols") or ()),
            origins=check_origins(options.get("origins")),
            deflate=(DeflateOptions() if compression is True else None)
            if isinstance(compression, bool)
            else compression,
            trace=options.get("trace"),
            limits=Limits(**given),
            max_connections=most,
            shutdown_code=_checked_shutdown_code(options.get("shutdown_code", 0)),
            install_signal_handlers=_checked_switch(options, "install_signal_handlers"),
        )


def check_options(given: Iterable[str], known: frozenset[str], where: str = "") -> None:
    """Refuse unknown options, which would have no effect.

    Args:
        given: names of the given options.
        known: names of the valid options.
        where: the function that takes them, such as ``"connect()"``; empty if it takes all of :class:`Options`.

    Raises:
        TypeError: a name is unknown; the error suggests a similar one, or says where the option belongs.
    """
    if unknown := [name for name in given if name not in known]:
        taken = f"options of {where}" if where else "options"
        got = ", ".join(name + _hint(name, known) for name in unknown)
        raise TypeError(f"expected {taken} among {', '.join(sorted(known))}; got {got}")


def check_connection_options(options: ConnectionOptions, where: str) -> None:
    """Check the options of a route when it is declared, not on the first connection.

    Raises:
        TypeError: an option is not a connection option.
        ValueError: an option has an invalid value.
    """
    check_options(options, ConnectionOptions.__optional_keys__, where)
    Settings.of(cast(Options, options))


def _hint(name: str, known: frozenset[str]) -> str:
    if name in Options.__optional_keys__:
        return " (an option of WatershedASGI and WatershedWSGI)"
    close = get_close_matches(name, known, 1, cutoff=0.75)
    return f" (did you mean {close[0]}?)" if close else ""


def _checked_switch(options: Options, name: str) -> bool:
    value = options.get(name, True)
    if not isinstance(value, bool):
        raise ValueError(f"expected {name} as True or False, got {value!r}")
    return value


def _checked_shutdown_code(code: Any) -> int | None:
    if code is None or (code == 0 and isinstance(code, int) and not isinstance(code, bool)):
        return code
    try:
        encode_close(code, "")
    except LocalProtocolError as error:
        raise ValueError(f"expected shutdown_code as a close code, or None: {error}") from None
    return int(code)
