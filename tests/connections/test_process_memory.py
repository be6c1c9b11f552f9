"""connection/memory.py: the amount of memory available to the process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from watershed_mw.connection import memory

GIB = 2**30


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_cgroup_v2_the_lowest_limit_of_the_hierarchy_applies(tmp_path: Path) -> None:
    write(tmp_path, **{"a/b/memory.max": "max", "a/memory.max": str(3 * GIB), "memory.max": str(4 * GIB)})
    assert memory.cgroup_limit("0::/a/b\n", tmp_path) == 3 * GIB
    assert memory.cgroup_limit("0::/\n", tmp_path) == 4 * GIB


def test_cgroup_v1_limits_apply(tmp_path: Path) -> None:
    write(
        tmp_path,
        **{"memory/docker/1/memory.limit_in_bytes": str(GIB), "memory/memory.limit_in_bytes": "9223372036854771712"},
    )
    membership = "12:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n1:name=systemd:/docker/1\n"
    assert memory.cgroup_limit(membership, tmp_path) == GIB


def test_a_container_sees_its_own_cgroup_at_the_root(tmp_path: Path) -> None:
    write(tmp_path, **{"memory.max": str(GIB)})
    assert memory.cgroup_limit("0::/system.slice/docker-1234.scope", tmp_path) == GIB


@pytest.mark.parametrize("membership", ["", "0::/", "0::/a\n3:memory:/b", "nonsense", "0::/../.."])
def test_without_a_cgroup_limit_the_machines_memory_applies(membership: str, tmp_path: Path) -> None:
    assert memory.cgroup_limit(membership, tmp_path / "nothing") is None


def test_the_machines_memory_is_an_upper_bound() -> None:
    assert 64 * 2**20 < memory.available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_max_memory_is_a_fraction_or_a_number_of_bytes() -> None:
    assert memory.bytes_of(0.25) == memory.available_memory() // 4
    assert memory.bytes_of(10 * GIB) == 10 * GIB
    assert memory.bytes_of(1) == 1


def test_all_connections_share_one_budget() -> None:
    assert memory.memory_budget() is memory.memory_budget()
