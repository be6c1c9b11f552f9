"""Where frames begin and end (RFC 6455 section 5.2), in any chunks and for any input."""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builds import PURE, interpreted_package
from watershed_mw.core.frames.codec import encode_frame

BUILDS = ["interpreted"] if PURE else ["interpreted", "compiled"]
KEY = b"\x37\xfa\x21\x3d"
CLOSE = 0x8


def made(build: str) -> Any:
    package = interpreted_package() if build == "interpreted" and not PURE else "watershed_mw"
    module = importlib.import_module(f"{package}.core.frames.boundaries")
    assert str(module.__file__).endswith(".py") is (build == "interpreted")
    return module.Boundaries()


@pytest.fixture(params=BUILDS)
def boundaries(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


frames = st.builds(
    encode_frame,
    st.sampled_from([0, 1, 2, 9, 10]),
    st.sampled_from([0, 1, 125, 126, 300, 65535, 65536]).map(bytes),
    st.sampled_from([None, KEY]),
    st.sampled_from([0x00, 0x80, 0xC0]),
)


def every_boundary(boundaries: Any, stream: bytes) -> list[int]:
    """The positions in ``stream`` that are boundaries, fed byte by byte."""
    places = []
    for position in range(len(stream)):
        boundaries.feed(stream, position, position + 1)
        if boundaries.at_boundary:
            places.append(position + 1)
    return places


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "masked"])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
def test_boundaries_are_tracked_byte_by_byte(boundaries: Any, size: int, key: bytes | None) -> None:
    frame = encode_frame(2, bytes(size), key)
    assert boundaries.at_boundary
    assert every_boundary(boundaries, frame * 2) == [len(frame), 2 * len(frame)]
    assert not boundaries.close_passed


@pytest.mark.parametrize("build", BUILDS)
@given(st.lists(frames, max_size=5), st.lists(st.integers(1, 70_000), max_size=8), st.booleans())
def test_boundaries_are_tracked_in_any_frames_and_any_chunks(
    build: str, several: list[bytes], sizes: list[int], close: bool
) -> None:
    boundaries = made(build)
    several = [*several, encode_frame(CLOSE, b"\x03\xe8", KEY)] if close else several
    ends = [sum(map(len, several[: count + 1])) for count in range(len(several))]
    stream = b"".join(several)
    place = 0
    for size in [*sizes, len(stream)]:
        data, stop = bytearray(stream), min(place + size, len(stream))
        if size % 2:
            found = boundaries.feed_to_boundary(data, place, stop)
            expected = place if place in (0, *ends) else next((end for end in ends if place < end <= stop), -1)
            assert found == expected
            if found >= 0:
                assert boundaries.at_boundary
                boundaries.feed(data, found, stop)
        else:
            boundaries.feed(data, place, stop)
        place = stop
        assert boundaries.at_boundary is (place in (0, *ends))
        assert boundaries.close_passed is (close and place == len(stream))


def test_a_close_counts_once_its_last_byte_has_passed(boundaries: Any) -> None:
    frame = encode_frame(CLOSE, b"\x03\xe8bye", None)
    boundaries.feed(frame, 0, len(frame) - 1)
    assert not boundaries.close_passed
    assert boundaries.feed_to_boundary(frame, len(frame) - 1, len(frame)) == len(frame)
    assert boundaries.close_passed


def test_an_empty_close_counts_as_a_close(boundaries: Any) -> None:
    boundaries.feed(b"\x88\x00", 0, 2)
    assert boundaries.close_passed


def test_an_empty_chunk_is_a_boundary_only_between_frames(boundaries: Any) -> None:
    boundaries.feed(b"", 0, 0)
    assert boundaries.feed_to_boundary(b"", 0, 0) == 0
    boundaries.feed(b"\x82", 0, 1)
    assert boundaries.feed_to_boundary(b"", 0, 0) == -1


@pytest.mark.parametrize("length", [2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("mask", [0, 0x80])
def test_a_frame_of_maximal_length_has_no_boundary(boundaries: Any, length: int, mask: int) -> None:
    header = bytes([0x88, mask | 127]) + length.to_bytes(8, "big")
    data = header + bytes(2**16)
    boundaries.feed(data, 0, len(data))
    assert boundaries.feed_to_boundary(data, 0, len(data)) == -1
    assert not boundaries.at_boundary
    assert not boundaries.close_passed


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_both_builds_skip_garbage_alike(data: bytes, cuts: list[int]) -> None:
    seen = []
    for build in BUILDS:
        boundaries = made(build)
        places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        steps = []
        for number, (start, stop) in enumerate(pairwise(places)):
            result = (
                boundaries.feed_to_boundary(data, start, stop) if number % 2 else boundaries.feed(data, start, stop)
            )
            steps.append((result, boundaries.at_boundary, boundaries.close_passed))
        seen.append(steps)
    assert seen[0] == seen[-1]
