"""The number of threads of this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tdmpc2.support.cgroups import quota_cores, quota_memory
from tdmpc2.support.runtime import kernel_threads, set_num_threads, too_many_threads, usable_cores


@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [(None, "3", 3), (2, "3", 2), (None, "5,2", 5), (None, None, "cores"), (None, "", "cores"), (None, "0", "cores")],
)
def test_set_num_threads_follows_argument_environment_and_cores(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, environment: str | None, expected: int | str
) -> None:
    """The argument comes first, then OMP_NUM_THREADS, then the number of cores."""
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    count = usable_cores() if expected == "cores" else expected
    assert set_num_threads(asked) == count
    assert used == [count]


# -- the CPU quota of a container -------------------------------------------------------------------------------------


def groups(root: Path, cgroup: str, **files: str) -> Path:
    """Write what Linux tells a process of its control groups."""
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/", {}, None),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "nonsense"}, None),
        # The group of the process lies below the top, and one above it is stricter, or not.
        ("0::/pods/mine", {"pods/mine/cpu.max": "300000 100000"}, 3),
        ("0::/pods/mine", {"pods/mine/cpu.max": "max 100000", "pods/cpu.max": "400000 100000"}, 4),
        ("0::/pods/mine", {"pods/mine/cpu.max": "300000 100000", "pods/cpu.max": "200000 100000"}, 2),
        ("0::/pods/mine", {"pods/other/cpu.max": "100000 100000"}, None),
        ("0::/../other", {"cpu.max": "500000 100000"}, 5),
        # Version 1, whose folder is named by the controllers, and both side by side.
        ("4:cpu,cpuacct:/docker/a\n3:memory:/docker/a\n0::/", {
            "cpu,cpuacct/docker/a/cpu.cfs_quota_us": "250000", "cpu,cpuacct/docker/a/cpu.cfs_period_us": "50000"}, 5),
        ("1:cpu:/docker/a", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("1:cpuset:/a\n0::/b", {"unified/b/cpu.max": "700000 100000"}, 7),
    ],
)  # fmt: skip
def test_quota_is_the_strictest_of_the_process_groups(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: int | None
) -> None:
    """Only the top group of version 2 was read: a container with the quota of two cores computed with all of them."""
    root = groups(tmp_path, cgroup, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert quota_cores(root) == expected


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/", {"memory.max": "max", "memory.current": "10"}, None),
        ("0::/", {"memory.max": "100", "memory.current": "30"}, 70),
        ("0::/", {"memory.max": "100", "memory.current": "130"}, 0),
        ("0::/", {"memory.max": "100", "memory.current": "90",
                  "memory.stat": "anon 2\nactive_file 9\ninactive_file 51"}, 70),
        ("0::/job/step", {"job/memory.max": "100", "job/memory.current": "30", "job/step/memory.max": "max"}, 70),
        ("7:cpu:/a\n3:memory:/a\n0::/", {
            "memory/a/memory.limit_in_bytes": "100", "memory/a/memory.usage_in_bytes": "80",
            "memory/a/memory.stat": "inactive_file 5\ntotal_inactive_file 30"}, 50),
    ],
)  # fmt: skip
def test_memory_is_what_the_strictest_group_leaves(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: int | None
) -> None:
    root = groups(tmp_path, cgroup, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert quota_memory(root) == expected


def test_quota_where_linux_tells_nothing_is_none(tmp_path: Path) -> None:
    assert quota_cores(tmp_path) is None
    assert quota_memory(tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (2, 2), (99, 8)])
def test_cores_and_threads_are_cut_to_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: int | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr("tdmpc2.support.runtime.quota_cores", lambda: quota)
    assert usable_cores() == kernel_threads() == expected
    assert ("torch.set_num_threads(2)" in too_many_threads()) == (quota == 2)
