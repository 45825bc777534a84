"""What a command says: tables or one JSON document on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from landscape.launch import Launch
from landscape.text import escape_name

__all__ = ["REPORT", "Report", "printable"]


def printable(text: object) -> str:
    """Text from files made safe for the terminal: control characters and markup escaped."""
    from rich.markup import escape

    return escape(escape_name(str(text)))


class Report:
    """Collects the results and errors of one command line."""

    def __init__(self) -> None:
        self.begin(json=False, command="", argv=())

    def begin(self, *, json: bool, command: str, argv: Sequence[str]) -> None:
        """Start anew for a command line."""
        self.launch: Launch | None = None  # Of several processes of one analysis the first speaks.
        self._stdout = sys.stdout
        self.use_json(json)
        self.quiet = "--quiet" in argv or "-q" in argv
        self.debug = "--debug" in argv
        self.command = command
        self.argv = tuple(argv)
        self.checkpoint: str | None = None  # The checkpoint that a fatal error is about.
        self._muted = False
        self.results: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []

    @property
    def silent(self) -> bool:
        """Say nothing at all: another process of the same analysis speaks."""
        return self.launch is not None and self.launch.rank > 0

    def use_json(self, wanted: bool) -> None:
        """Whether a JSON document goes to stdout, instead of tables."""
        self.json = wanted
        # What a task's code prints must not get in between.
        sys.stdout = sys.stderr if wanted else self._stdout

    def close(self) -> None:
        """Give stdout back."""
        sys.stdout = self._stdout

    def table(self, *renderables: object) -> None:
        """Show results to a person: on stdout, unless JSON goes there."""
        from rich.console import Console

        if not (self.json or self._muted or self.silent):
            console = Console(emoji=False, highlight=False)
            if not console.is_terminal:
                # A redirected table keeps its columns instead of folding at 80.
                console = Console(emoji=False, highlight=False, width=max(console.width, 120))
            # Rich would end the process where the reader (head, less) has gone; what is left to
            # measure must go on.
            console.on_broken_pipe = self._abandon_stdout  # type: ignore[method-assign]
            for renderable in renderables:
                console.print(renderable)

    def _abandon_stdout(self) -> None:
        self._muted = True
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stdout.fileno())

    @contextlib.contextmanager
    def without_tables(self) -> Iterator[None]:
        """Show no tables inside the block: the caller sums the results up itself."""
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

    def say(self, message: str) -> None:
        """A notice on stderr (rich markup allowed), unless --quiet."""
        if not self.quiet:
            self._stderr(message)

    def warn(self, message: str) -> None:
        """A warning on stderr, also with --quiet."""
        self._stderr(f"[yellow]warning:[/yellow] {printable(message)}")

    def error(self, message: str, code: int, checkpoint: str | None = None) -> None:
        """One error message on stderr, also recorded for the JSON document."""
        where = f"{checkpoint}: " if checkpoint and checkpoint not in message else ""
        self._stderr(f"[bold red]error:[/bold red] {printable(where + message)}")
        self.errors.append({"checkpoint": checkpoint, "exit_code": code, "message": message})

    def _stderr(self, message: str) -> None:
        from rich.console import Console

        if self.silent:
            return
        # Messages are one line each: no folding, so that they can be searched and copied.
        Console(stderr=True, emoji=False, highlight=False, soft_wrap=True).print(message)

    def add(self, result: Mapping[str, Any]) -> None:
        """Record one result for the JSON document."""
        self.results.append(dict(result))

    def fail(self, message: str, code: int) -> int:
        """Report an error that ends the command, and return its exit code."""
        self.error(message, code, self.checkpoint)
        return self.end(code)

    def end(self, code: int) -> int:
        """Print the JSON document where one was asked for, and return the exit code."""
        if self.json and not self.silent:
            document = {
                "schema": "landscape/1",
                "command": self.command,
                "results": self.results,
                "errors": self.errors,
            }
            text = json.dumps(_plain(document), indent=2, allow_nan=False)
            try:
                self._stdout.write(text + "\n")
                self._stdout.flush()
            except BrokenPipeError:
                self._abandon_stdout()
        return code


def _plain(value: Any) -> Any:
    """The value with non-finite numbers as null and arrays as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


REPORT = Report()
