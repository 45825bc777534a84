"""``landscape collect --merge``: the shards of one run joined to one result file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from landscape.errors import ResultFileError, UsageError
from landscape.store import load, result_name, save
from landscape.volume.records import VolumeResult
from landscape.volume_merge import covers, merge_volumes, same_rays
from landscape_cli.render_volume import report_volume
from landscape_cli.reporting import REPORT, printable

__all__ = ["merge_files"]


def merge_files(files: Sequence[Path], out: Path | None, *, overwrite: bool) -> None:
    """Merge shards and write their result, unless it is there already.

    Args:
        files: result files.
        out: file to write; the name of an unsharded run's result beside the first where None.
        overwrite: whether rays of an earlier result may be lost.

    Raises:
        UsageError: the results are no shards of one run, or the file holds something else.
    """
    results = [load(file) for file in files]
    info = results[0].info
    if out is None:
        out = files[0].with_name(result_name(info.checkpoint, info.command, info.key))
    chosen = _without_earlier(files, results, out)
    merged = merge_volumes(
        [results[i] for i in chosen],
        sources=[str(files[i]) for i in chosen],
        argv=("landscape", *REPORT.argv),
    )
    new = _is_new(out, merged, overwrite=overwrite)
    if new:
        save(out, merged)
    report_volume(REPORT, out, merged, new=new)
    if new:
        REPORT.say(f"merged {len(chosen)} results: {printable(out)}")
    else:
        REPORT.say(f"{printable(out)} is up to date; nothing to do")


def _without_earlier(files: Sequence[Path], results: Sequence[object], out: Path) -> list[int]:
    """Indices of the results to merge: not of what an earlier run has merged them to."""
    chosen = list(range(len(files)))
    for index, (file, result) in enumerate(zip(files, results, strict=True)):
        if not (out.exists() and os.path.samefile(out, file) and isinstance(result, VolumeResult)):
            continue
        others = [r for r in results if isinstance(r, VolumeResult) and r is not result]
        if covers([r for r in others if r.info.key == result.info.key], result):
            REPORT.say(f"{printable(file)} is left out: it holds rays of the others only")
            chosen.remove(index)
    return chosen


def _is_new(out: Path, merged: VolumeResult, *, overwrite: bool) -> bool:
    """Whether the file is still to be written.

    Raises:
        UsageError: it is not to be replaced.
    """
    if not out.exists():
        return True
    try:
        earlier = load(out)
    except ResultFileError as error:
        if overwrite and not out.is_dir():
            return True
        raise UsageError(
            f"--out {out} exists and is no result file ({error}). Choose another name, or "
            "--overwrite"
        ) from error
    if not isinstance(earlier, VolumeResult) or earlier.info.key != merged.info.key:
        raise UsageError(
            f"--out {out} is the result of another measurement; it is never replaced. Choose "
            "another name"
        )
    if same_rays(earlier, merged):
        return False
    if not overwrite and not covers([merged], earlier):
        raise UsageError(
            f"--out {out} exists and holds rays that are not among these. Merge it too, choose "
            "another name, or --overwrite"
        )
    return True
