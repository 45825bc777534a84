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
    if "landscape.distributed" in sys.modules:
        from landscape.distributed import leave

        if leave():
            # Threads of the exchanges abort an interpreter that ends, now and then.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
