"""Run a script where torchvision's compiled operators do not load: ``python mended.py SCRIPT ...``.

The wheels of the registry are built with CUDA, and CPU builds of torch lack its libraries. A user's
torch and torchvision fit each other.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    from landscape.tasks._extras import optional

    optional("torchvision", "vision")
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
