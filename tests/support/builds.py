"""The two builds of the hot path, side by side in one process."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

import watershed_mw
from watershed_mw._implementation import SourcesOnly
from watershed_mw.core import deflate, prepared, protocol, receive_queue
from watershed_mw.core.frames import codec, payload_buffer
from watershed_mw.core.handshake.extensions import DeflateParameters
from watershed_mw.core.limits import Limits
from watershed_mw.core.states import Role

PURE = os.environ.get("WATERSHED_MW_PURE") == "1"
START = 1000.0
"""Seconds at which every protocol under test begins to live."""
PLAIN_LIMITS = Limits(ping_interval=None)
"""The default limits without keepalive, for tests that are about something else."""


@dataclass(frozen=True)
class Build:
    """The hot path in one of its two builds; mypy sees the interpreted one."""

    name: str
    Protocol: type[protocol.Protocol]
    FrameReader: type[codec.FrameReader]
    PayloadBuffer: type[payload_buffer.PayloadBuffer]
    Deflate: type[deflate.Deflate]
    Contexts: type[deflate.Contexts]
    PreparedMessage: type[prepared.PreparedMessage]
    ReceiveQueue: type[receive_queue.ReceiveQueue]
    encode_frame: Callable[..., bytes]
    mask: Callable[[bytes, int, int, bytes, int], bytes]

    def make(
        self,
        role: Role = Role.SERVER,
        limits: Limits = PLAIN_LIMITS,
        parameters: DeflateParameters | None = None,
        now: float = START,
    ) -> protocol.Protocol:
        """A new protocol."""
        return self.Protocol(role, now, limits, parameters)


def interpreted_package() -> str:
    """The name of a second ``watershed_mw`` whose hot path is interpreted and whose other modules are shared."""
    name = "watershed_mw_interpreted"
    if name not in sys.modules:
        for known, module in list(sys.modules.items()):
            source = str(getattr(module, "__file__", ""))
            if known.startswith("watershed_mw.") and source.endswith(".py") and not source.endswith("__init__.py"):
                sys.modules[name + known.removeprefix("watershed_mw")] = module
        sys.meta_path.insert(0, SourcesOnly(name))
        for place in (watershed_mw, watershed_mw.core):
            package = types.ModuleType(name + place.__name__.removeprefix("watershed_mw"))
            package.__path__ = place.__path__
            sys.modules[package.__name__] = package
    return name


def load_build(name: str) -> Build:
    """``"interpreted"`` or ``"compiled"``; fails, and never skips, if the compiled build is missing."""
    package = "watershed_mw" if PURE or name == "compiled" else interpreted_package()
    parts = ("protocol", "frames.codec", "frames.payload_buffer", "deflate", "prepared", "receive_queue")
    modules = [importlib.import_module(f"{package}.core.{part}") for part in parts]
    compiled = [not str(module.__file__).endswith(".py") for module in modules]
    assert compiled == [name == "compiled"] * 6, (
        f"{package} does not hold the {name} build: run `make build`, or set WATERSHED_MW_PURE=1 to test without it"
    )
    protocols, framing, buffering, deflating, sharing, queueing = modules
    return Build(
        name,
        protocols.Protocol,
        framing.FrameReader,
        buffering.PayloadBuffer,
        deflating.Deflate,
        deflating.Contexts,
        sharing.PreparedMessage,
        queueing.ReceiveQueue,
        framing.encode_frame,
        framing.mask,
    )
