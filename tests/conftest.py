"""Settings of the whole suite."""

from __future__ import annotations

import os

import pytest
import torch
from threadpoolctl import threadpool_limits

# The networks here are tiny: a second thread costs more than it gives, above all on a busy machine.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
torch.set_num_threads(1)
_LIMITS = threadpool_limits(1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory, result) -> bytes:
    """A result file of a module's own ``result``, written once."""
    from landscape.store import save  # After the limits above.

    path = tmp_path_factory.mktemp("stored") / "a.h5"
    save(path, result)
    return path.read_bytes()


@pytest.fixture
def file(tmp_path, stored):
    """A copy of it that a test may damage."""
    path = tmp_path / "result.h5"
    path.write_bytes(stored)
    return path
