"""Write the text of ``--help`` into the handbook: ``python docs/update_help.py``.

A page's text between the two markers is replaced by the output of ``landscape COMMAND --help``,
where COMMAND is the page's name in ``docs/commands``; ``docs/index.md`` holds the general one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

__all__ = ["help_text", "pages", "updated"]

DOCS = Path(__file__).resolve().parent
_BEGIN, _END = "<!-- help:begin -->", "<!-- help:end -->"
_PLAIN = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
# These make Typer or rich draw as on a terminal although the output goes to a pipe.
_DROPPED = {"FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH", "TTY_COMPATIBLE"}


def pages() -> dict[Path, tuple[str, ...]]:
    """Every page that shows a help text, with the command's words."""
    commands = {page: (page.stem,) for page in sorted((DOCS / "commands").glob("*.md"))}
    return {DOCS / "index.md": (), **commands}


def help_text(command: tuple[str, ...]) -> str:
    """What ``landscape COMMAND --help`` prints, 100 columns wide and without colours."""
    kept = {key: value for key, value in os.environ.items() if key not in _DROPPED}
    done = subprocess.run(
        [sys.executable, "-m", "landscape_cli", *command, "--help"],
        env={**kept, **_PLAIN},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    return "\n".join(lines).strip("\n")


def updated(text: str, help_: str) -> str:
    """The page's text with the current help between its markers.

    Raises:
        ValueError: the page does not have the two markers exactly once.
    """
    if text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise ValueError(f"expected {_BEGIN} and {_END} once each")
    block = f"{_BEGIN}\n```text\n{help_}\n```\n{_END}"
    pattern = re.escape(_BEGIN) + ".*" + re.escape(_END)
    return re.sub(pattern, lambda match: block, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite every page whose help text is out of date."""
    for page, command in pages().items():
        old = page.read_text("utf-8")
        new = updated(old, help_text(command))
        if new != old:
            page.write_text(new, "utf-8")
            print(f"updated {page.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
