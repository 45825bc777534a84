"""Starting several processes of one analysis."""

from __future__ import annotations

import os
import sys


def torchrun(size: int, *arguments: object) -> list[str]:
    """The command line that starts so many processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", str(size), *map(str, arguments)]


def one_thread(**variables: object) -> dict[str, str]:
    """The environment for processes of one thread, with more variables."""
    named = {name: str(value) for name, value in variables.items()}
    return {**os.environ, "OMP_NUM_THREADS": "1", **named}
