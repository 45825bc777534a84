"""The loop over checkpoints: result files, resuming, errors of single checkpoints, exit codes."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from landscape.budget import Budget
from landscape.checkpoint import expand_checkpoints, read_checkpoint
from landscape.data import DataSet, materialise
from landscape.errors import (
    LandscapeError,
    NotConvergedError,
    PartialFailureError,
    ResultFileError,
    TerminatedError,
    UsageError,
)
from landscape.hessian import HessianOptions, too_wide
from landscape.partial import PartialFile
from landscape.results import HessianResult
from landscape.runs import HessianRun
from landscape.settings import Settings
from landscape.store import load, result_name, save
from landscape.task import ResolvedTask, parse_settings, resolve_task
from landscape_cli.options import Common
from landscape_cli.progress import progress_bar
from landscape_cli.render import Sums, report_result
from landscape_cli.reporting import REPORT, printable

__all__ = ["measure_checkpoints", "settings_from"]


def settings_from(common: Common) -> Settings:
    """The library's settings that the command line stands for."""
    if common.graph_memory is not None and not 0 <= common.graph_memory < math.inf:
        raise UsageError(f"--graph-memory {common.graph_memory}: expected a number of GB, or 0")
    if not -(2**63) <= common.seed < 2**63:
        raise UsageError(f"--seed {common.seed}: expected a whole number of at most 64 bits")
    return Settings(
        loss=common.loss,  # type: ignore[arg-type]  # checked by Settings
        params=tuple(common.params or ()),
        examples=common.examples,
        batch_size=common.batch_size,
        device=common.device,
        dtype=common.dtype,
        seed=common.seed,
        graph_memory=None if common.graph_memory is None else int(common.graph_memory * 2**30),
        compiled=common.compiled,
        budget=Budget() if common.budget is None else Budget.parse(common.budget),
    )


def prepare_task(common: Common, settings: Settings) -> tuple[ResolvedTask, DataSet]:
    """Resolve the task, say which code ran, and read its data."""
    resolved = resolve_task(common.task, parse_settings(common.set_ or []))
    REPORT.say(
        f"task {printable(resolved.name)}: {printable(resolved.path)} "
        f"(sha256 {resolved.sha256[:12]})"
    )
    return resolved, materialise(resolved.task.data, examples=settings.examples, seed=settings.seed)


def measure_checkpoints(
    patterns: Sequence[str],
    common: Common,
    options: HessianOptions,
    sums: Sums = Sums(),  # noqa: B008  (frozen)
) -> list[Path]:
    """Measure every checkpoint and return the result files.

    Raises:
        LandscapeError: what went wrong; with several checkpoints the others are measured first.
    """
    settings = settings_from(common)
    paths = expand_checkpoints(patterns)
    _require_writable(common.out)
    resolved, data = prepare_task(common, settings)
    files: list[Path] = []
    failures: list[LandscapeError] = []
    unconverged: list[str] = []
    for path in paths:
        try:
            file, result = _measure(path, common, settings, options, resolved, data, sums)
        except TerminatedError:
            raise
        except LandscapeError as error:
            if isinstance(error, UsageError) and not isinstance(error, ResultFileError):
                raise  # It is the same for every checkpoint.
            if len(paths) == 1:
                REPORT.checkpoint = str(path)
                raise
            REPORT.error(str(error), error.exit_code, str(path))
            failures.append(error)
            continue
        files.append(file)
        if not all(bool(s.converged.all()) for s in result.spectra.values()):
            unconverged.append(str(path))
    if failures:
        if len(failures) == len(paths):
            codes = {error.exit_code for error in failures}
            failed = LandscapeError(f"all {len(paths)} checkpoints failed")
            failed.exit_code = codes.pop() if len(codes) == 1 else 3
            raise failed
        raise PartialFailureError(f"{len(failures)} of {len(paths)} checkpoints failed")
    if unconverged and common.strict:
        raise NotConvergedError(
            f"not converged (--strict): {', '.join(unconverged)}. The results are stored; use "
            "--dtype float64 or a larger --tol"
        )
    return files


def _require_writable(folder: Path) -> None:
    """Find out before the computation, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp"):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder}: {error.strerror or error}. Choose another folder with --out"
        ) from error


def _measure(
    path: Path,
    common: Common,
    settings: Settings,
    options: HessianOptions,
    resolved: ResolvedTask,
    data: DataSet,
    sums: Sums,
) -> tuple[Path, HessianResult]:
    checkpoint = read_checkpoint(
        path, weights_key=common.weights_key, unsafe_pickle=common.unsafe_pickle
    )
    run = HessianRun(
        resolved=resolved,
        data=data,
        checkpoint=checkpoint,
        settings=settings,
        options=options,
        argv=("landscape", *REPORT.argv),
    )
    file = common.out / result_name(str(path), "hessian", run.key)
    earlier = None if common.overwrite else _complete(file, run.key)
    if earlier is not None and _satisfies(earlier, run):
        earlier = _as_asked(earlier, run)
        REPORT.say(f"{printable(file)} is complete; nothing to do (--overwrite computes it again)")
        report_result(REPORT, file, earlier, new=False, sums=sums)
        return file, earlier
    units = PartialFile(file, run.key, interval=common.flush_seconds)
    if common.overwrite:
        units.clear()
    if units.n_resumed:
        REPORT.say(f"resuming from {printable(units.path)} ({units.n_resumed} finished units)")
    if earlier is not None:
        run.options = _extended(options, earlier)
        _reuse_probes(earlier, units)
    try:
        with progress_bar(path.name, quiet=common.quiet) as progress:
            result = run.measure(units=units, progress=progress)
    except BaseException:
        units.flush()
        raise
    save(file, result)
    if result.info.status == "complete":
        units.remove()
    else:
        units.flush()
    report_result(REPORT, file, result, sums=sums)
    return file, result


def _complete(file: Path, key: str) -> HessianResult | None:
    if not file.exists():
        return None
    result = load(file)
    if result.info.key != key:
        raise ResultFileError(
            f"{file} holds a result of another configuration whose key begins alike; use another "
            "--out, or --overwrite"
        )
    return result


def _as_asked(result: HessianResult, run: HessianRun) -> HessianResult:
    """A result that shows as many eigenvalues as are asked for: exact ones are all in the file."""
    top, bottom = run.wanted
    spectra = {
        name: dataclasses.replace(spectrum, top=top, bottom=bottom) if spectrum.exact else spectrum
        for name, spectrum in result.spectra.items()
    }
    return dataclasses.replace(result, spectra=spectra)


def _satisfies(result: HessianResult, run: HessianRun) -> bool:
    """Whether a complete result has all that is asked for; a larger request continues it."""
    options = run.options
    if result.info.status != "complete":
        return False
    for name in options.operators:
        if name not in result.spectra:
            return False
        spectrum = result.spectra[name]
        stored = (spectrum.top, spectrum.bottom)
        if options.save_vectors and (spectrum.eigenvectors is None or stored != run.wanted):
            return False
        found = result.moments.get(name)
        if found is not None and 0 < found.n_probes < options.probes:
            return False
        if found is not None and options.error is not None and too_wide(found, options.error):
            return False
    return True


def _extended(options: HessianOptions, earlier: HessianResult) -> HessianOptions:
    """The options that add to a complete result without losing anything of it."""
    probes = [moments.n_probes for moments in earlier.moments.values()]
    stored = any(s.eigenvectors is not None for s in earlier.spectra.values())
    return dataclasses.replace(
        options,
        probes=max(options.probes, *probes),
        save_vectors=options.save_vectors or stored,
    )


def _reuse_probes(result: HessianResult, units: PartialFile) -> None:
    """Take the probes of a complete result as finished units."""
    for name, density in result.densities.items():
        d, unit = density.n_deflated, name.replace("/", "|")
        if result.spectra[name].exact:
            continue
        for index, (nodes, weights) in enumerate(zip(density.nodes, density.weights, strict=True)):
            kept = np.flatnonzero(weights[d:] > 0) + d
            bulk = weights[kept] / weights[kept].sum()
            units.put(f"probe-{unit}-{index}", {"nodes": nodes[kept], "weights": bulk})
