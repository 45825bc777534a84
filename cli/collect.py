"""``landscape collect``: results of many checkpoints joined over the training step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from landscape.errors import ResultFileError, UsageError
from landscape_cli.options import DebugOption, JsonOption, QuietOption, ReplaceOption, examples
from landscape_cli.reporting import REPORT, printable

__all__ = ["collect_results", "register", "write_new"]


def collect(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT...", help="Result files (.h5), or quoted globs such as 'results/*.h5'."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="File to write (default: series.h5; with --merge the result's own name, beside "
            "the shards).",
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Join shards of one run (volume --shard) to the result of all rays."
        ),
    ] = False,
    overwrite: ReplaceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """One table over the training step from the results of many checkpoints.

    Of landscape hessian: eigenvalues, moments and density of every step, and the overlap of the top
    eigenspace with the previous checkpoint's where eigenvectors were stored (--save-vectors). Of
    landscape volume: log-volumes by every method, their terms, and the directions of every class.
    Of landscape flat: ranks, symmetries, and the counts by prior.
    """
    from landscape.paths import expand_paths
    from landscape.series_store import kind_of

    files = []
    for path in expand_paths(
        results, what="result", expected="a .h5 file of a measurement or a quoted glob pattern"
    ):
        if kind_of(path) != "result":
            # A second run with the same glob finds what the first has written.
            REPORT.say(f"{printable(path)} is left out: it is a series itself")
        else:
            files.append(path)
    if not files:
        raise UsageError("no result to collect; expected result files of a measurement")
    if merge:
        from landscape_cli.merging import merge_files

        merge_files(files, out, overwrite=overwrite)
    else:
        collect_results(files, Path("series.h5") if out is None else out, overwrite=overwrite)


def collect_results(files: list[Path], out: Path, *, overwrite: bool) -> None:
    """Write the series of some result files and show it."""
    from landscape.series_store import collect_files, content, load_series, save_series
    from landscape_cli.render_series import report_series

    if any(_same_file(out, file) for file in files):
        raise UsageError(
            f"--out {out} is one of the results to collect; choose another name for the series"
        )
    series = collect_files(files)
    for notice in series.notices:
        REPORT.say(printable(notice))
    new = write_new(
        out,
        kind="series",
        same=lambda: content(load_series(out)) == content(series),
        save=lambda: save_series(out, series),
        overwrite=overwrite,
    )
    report_series(REPORT, out, series, new=new)
    if new:
        REPORT.say(f"series: {printable(out)} ({len(series.step)} checkpoints)")
    else:
        REPORT.say(f"{printable(out)} is up to date; nothing to do")


def _same_file(one: Path, two: Path) -> bool:
    return one.exists() and os.path.samefile(one, two)


def write_new(
    out: Path,
    *,
    kind: str,
    same: Callable[[], bool],
    save: Callable[[], None],
    overwrite: bool,
) -> bool:
    """Write a file unless it is there already; whether it was written.

    Args:
        out: the file.
        kind: ``series`` or ``sweep``.
        same: whether what is there has the same content.
        save: writes it.
        overwrite: replace a file of other content.

    Raises:
        UsageError: it exists with other content, or is a result.
    """
    from landscape.series_store import kind_of

    if out.exists():
        try:
            found = kind_of(out)
            if found == "result":
                raise UsageError(
                    f"--out {out} is the result of a measurement, not a series; it is never "
                    "replaced. Choose another name"
                )
            if found == kind and same():
                return False
        except ResultFileError as error:
            if not overwrite or out.is_dir():
                raise UsageError(
                    f"--out {out} exists and is no series file ({error}). Choose another name, or "
                    "--overwrite"
                ) from error
        if not overwrite:
            raise UsageError(
                f"--out {out} exists and holds another series. Choose another name, or --overwrite"
            )
    save()
    return True


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "collect",
        epilog=examples(
            "landscape collect 'results/*.hessian.*.h5' -o series.h5",
            "landscape collect 'results/*.volume.*.h5' -o volumes.h5",
            "landscape collect 'results/*.flat.*.h5' -o flat.h5",
            "landscape collect --merge 'results/step_001000.volume.*-of-8.h5'",
            "landscape show series.h5",
            "landscape plot series.h5 -o series.pdf",
        ),
    )(collect)
