"""What the C library does with memory between products."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Freed blocks of 4 MB, in a process of its own: the setting cannot be undone.
PROGRAM = """
import resource, torch
from landscape.memory import keep_freed_memory
keep_freed_memory()
def work():
    for _ in range(20):
        torch.ones(1 << 20)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> int:
    """Pages that 20 allocations of 1024 pages, after as many, had to map."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.confstr("CS_GNU_LIBC_VERSION") is None,
    reason="only glibc has the setting",
)
def test_freed_memory_is_kept():
    assert faults() < 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc reads the variable")
def test_the_environment_wins():
    assert faults(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536") > 20 * 512
