"""Progress bars on stderr: products done, rate and time left; silent where nobody watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(
    title: str, *, quiet: bool, unit: str = "products"
) -> Iterator[Callable[[str, int, int | None], None]]:
    """A callback ``(phase, units done, units expected)`` behind a bar on a terminal."""
    # Rich would write a last frame into a redirected stderr, so no bar exists there at all.
    if quiet or not sys.stderr.isatty():
        yield lambda phase, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed:.0f}} {unit}, {{task.fields[rate]}}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True, emoji=False),
        transient=True,
    )
    tasks: dict[str, int] = {}

    def tick(phase: str, done: int, total: int | None) -> None:
        if phase not in tasks:
            for earlier in tasks.values():
                bar.update(earlier, visible=False)  # type: ignore[arg-type]
            tasks[phase] = bar.add_task(f"{title} {phase}", total=total, rate="")
        state = bar.tasks[[t.id for t in bar.tasks].index(tasks[phase])]  # type: ignore[arg-type]
        speed = state.speed
        rate = f"{speed:.1f}/s" if speed else "..."
        bar.update(state.id, completed=done, total=total, rate=rate)

    with bar:
        yield tick
