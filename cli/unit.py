"""``python -m landscape_cli.unit FOLDER ARGUMENT...``: one unit of a sweep in its own process."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Run a command line under the unit's lock and exit with its code."""
    from landscape.errors import LandscapeError
    from landscape.unit_process import run_locked
    from landscape_cli.app import run

    sys.path.append(os.getcwd())  # For --task package.module, as __main__ has it.
    try:
        code = run_locked(Path(sys.argv[1]), run, sys.argv[2:])
    except (OSError, LandscapeError) as error:
        sys.exit(f"cannot run in {sys.argv[1]}: {error}")
    sys.exit(code)


if __name__ == "__main__":
    main()
