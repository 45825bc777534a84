"""A checkpoint read by several processes of a node; started by torchrun with a folder to write to.

Every process tells how often it read, what it got and whether its tensors are those of a mapping.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from pathlib import Path

import torch

from landscape.checkpoint import Checkpoint
from landscape.distributed import join, leave
from landscape.errors import CheckpointError
from landscape.launch import launched
from landscape.node_copy import read_once


def checkpoint() -> Checkpoint:
    """Weights of several dtypes; two names share one tensor."""
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "a": base,
        "tied": base,
        "transposed": base.T,
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 4),
    }
    return Checkpoint(
        path="weights.pt",
        format="torch-zip",
        tensors=tensors,
        metadata={"epoch": "3"},
        sha256="abc",
        step=5,
        weights_key=None,
        unsafe_pickle=False,
    )


def main() -> None:
    ranks = join(launched())
    folder = Path(sys.argv[1])
    reads = 0

    def read():
        nonlocal reads
        reads += 1
        return checkpoint()

    def broken():
        raise CheckpointError("this file is broken")

    tempfile.tempdir = str(folder / "tmp")
    found = read_once(ranks, read)
    mapped = "landscape-" in Path("/proc/self/maps").read_text()
    found.tensors["a"][0, 0] += ranks.rank  # A process's own, as the mapping is private.
    try:
        read_once(ranks, broken)
        message = ""
    except CheckpointError as error:
        message = str(error)
    # The process that reads deletes its file before it takes part in anything else.
    left = os.listdir(folder / "tmp")
    tempfile.tempdir = str(folder / "absent")
    alone = read_once(ranks, read)
    told = {
        "reads": reads,
        "mapped": mapped,
        "left": left,
        "found": found,
        "first": float(found.tensors["a"][0, 0]),
        "message": message,
        "alone": alone,
    }
    (folder / f"{ranks.rank}.pickle").write_bytes(pickle.dumps(told))
    if leave():
        # As the command line ends: torch's threads may abort an interpreter that ends by itself.
        os._exit(0)
    ranks.each(0.0)


if __name__ == "__main__":
    main()
