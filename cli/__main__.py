"""Entry point of ``landscape`` and of ``python -m landscape_cli``."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # `python -m` puts the working directory first, where a user's own landscape.py (or numpy.py)
    # would be imported instead of the installed one. It comes last, for --task package.module.
    here = os.getcwd()
    sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]
    import landscape  # noqa: F401
    from landscape_cli.app import run

    sys.path.append(here)
    code = run(sys.argv[1:])
    if "torch.distributed" in sys.modules and _is_one_of_several():
        # Threads of the exchanges abort an interpreter that ends, now and then.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _is_one_of_several() -> bool:
    from landscape.distributed import leave
    from landscape.errors import UsageError
    from landscape.launch import launched

    try:
        several = launched() is not None
    except UsageError:
        return False
    leave()
    return several


if __name__ == "__main__":
    main()
