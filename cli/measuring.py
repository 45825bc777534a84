"""The loop over checkpoints: result files, resuming, errors of single checkpoints, exit codes."""

from __future__ import annotations

import contextlib
import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from landscape.budget import Budget
from landscape.checkpoint import Checkpoint, read_checkpoint
from landscape.data import DataSet, materialise
from landscape.distributed import ALONE, Alone, join
from landscape.errors import (
    LandscapeError,
    NotConvergedError,
    PartialFailureError,
    RankError,
    ResultFileError,
    TaskError,
    TerminatedError,
    UsageError,
)
from landscape.folders import expand_checkpoints
from landscape.lock import hold
from landscape.measurement import Measurement
from landscape.node_copy import read_once
from landscape.partial import PartialFile
from landscape.prior_measurement import PriorMeasurement
from landscape.priors import prior_table
from landscape.results import Result
from landscape.settings import Settings
from landscape.store import load, result_name, save
from landscape.task import ResolvedTask, parse_settings, resolve_task
from landscape.units import MemoryUnits
from landscape.volume.options import PriorOptions
from landscape_cli.options import Common
from landscape_cli.progress import progress_bar
from landscape_cli.render_prior import report_plan
from landscape_cli.reporting import REPORT, printable

__all__ = ["Job", "PriorJob", "measure_checkpoints", "read_named", "require_writable"]
__all__ += ["settings_from"]

Run = TypeVar("Run", bound=Measurement)
PriorRun = TypeVar("PriorRun", bound=PriorMeasurement)
Found = TypeVar("Found", bound=Result)


class Job(ABC, Generic[Run, Found]):
    """What one measuring command does with a checkpoint."""

    remedy = "use --dtype float64 or a larger --tol"

    @abstractmethod
    def run(self, **shared: Any) -> Run:
        """The measurement of one checkpoint, from what all commands share."""

    def suffix(self) -> str:
        """What the name of a result file ends in before ``.h5``."""
        return ""

    @abstractmethod
    def report(self, file: Path, result: Found, *, new: bool) -> None:
        """Show a result."""

    @abstractmethod
    def converged(self, result: Found) -> bool:
        """Whether ``--strict`` accepts it."""

    @abstractmethod
    def satisfied(self, result: Found, run: Run) -> bool:
        """Whether a stored result has all that is asked for."""

    def as_asked(self, result: Found, run: Run) -> Found:
        """A stored result as the command line wants to see it."""
        return result

    @abstractmethod
    def extend(self, earlier: Found, run: Run, units: MemoryUnits) -> None:
        """Let a run add to a stored result without losing anything of it."""

    def lacks(self, result: Found, earlier: Found) -> bool:
        """Whether a run that added to a stored result was cut short of what that has."""
        return False


class PriorJob(Job[PriorRun, Found]):
    """What a command does that measures under a prior.

    The prior's standard deviation is that of the first checkpoint, so that the others compare.

    Args:
        options: the prior and what to measure under it.
        common: the options that all commands share.
    """

    kind: type[PriorRun]

    def __init__(self, options: PriorOptions, common: Common) -> None:
        self.options = options
        self._access = {"weights_key": common.weights_key, "unsafe_pickle": common.unsafe_pickle}
        self._sigma: tuple[float, ...] | None = None

    def run(self, **shared: Any) -> PriorRun:
        """The measurement of one checkpoint."""
        run = self.kind(
            **shared, options=self.options, sigma=self._sigma, prior_access=self._access
        )
        self._sigma = run.sigma
        return run

    @abstractmethod
    def plan(self, run: PriorRun, n: int) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """What a run on n parameters would do: for JSON, and as rows of a table."""

    def show_plans(self, patterns: Sequence[str], common: Common) -> None:
        """Show the prior of every tensor and what would be done; measure nothing."""
        settings = settings_from(common)
        paths = expand_checkpoints(patterns)
        resolved, data = prepare_task(common, settings, paths)
        for path in paths:
            checkpoint = read_named(path, common)
            run = self.run(resolved=resolved, data=data, checkpoint=checkpoint, settings=settings)
            space = run.load()
            anchor = space.vector().double().cpu()
            prior = run.prior(space, anchor)
            table = prior_table(prior, space, anchor)
            planned, rows = self.plan(run, space.n)
            report_plan(
                REPORT,
                path,
                checkpoint.step,
                run.config,
                table,
                values={"n_parameters": space.n, **planned},
                rows=[("size", f"{space.n} parameters, {data.n_examples} examples"), *rows],
                notes=[*run.notes, *prior.notes],
            )


def settings_from(common: Common) -> Settings:
    """The library's settings that the command line stands for."""
    if common.graph_memory is not None and not 0 <= common.graph_memory < math.inf:
        raise UsageError(f"--graph-memory {common.graph_memory}: expected a number of GB, or 0")
    return Settings(
        loss=common.loss,  # type: ignore[arg-type]  # checked by Settings
        params=tuple(common.params or ()),
        examples=common.examples,
        data_seed=common.data_seed,
        batch_size=common.batch_size,
        device=common.device,
        dtype=common.dtype,
        seed=common.seed,
        graph_memory=None if common.graph_memory is None else int(common.graph_memory * 2**30),
        compiled=common.compiled,
        products=common.products,  # type: ignore[arg-type]  # checked by Settings
        budget=Budget() if common.budget is None else Budget.parse(common.budget),
    )


def prepare_task(
    common: Common, settings: Settings, paths: Sequence[Path]
) -> tuple[ResolvedTask, DataSet]:
    """Resolve the task for these checkpoints, say which code ran, and read its data."""
    resolved = resolve_task(common.task, parse_settings(common.set_ or []), checkpoint=paths[0])
    REPORT.say(
        f"task {printable(resolved.name)}: {printable(resolved.path)} "
        f"(sha256 {resolved.sha256[:12]})"
    )
    wanted = settings.examples
    data = materialise(resolved.task.data, examples=wanted, seed=settings.data_seed)
    if wanted is not None and wanted > data.n_examples:
        REPORT.say(f"--examples {wanted}: there are {data.n_examples}, and all are taken")
    return resolved, data


def read_named(path: Path, common: Common) -> Checkpoint:
    """Read a checkpoint as the command line says."""
    return read_checkpoint(path, weights_key=common.weights_key, unsafe_pickle=common.unsafe_pickle)


def measure_checkpoints(
    patterns: Sequence[str],
    common: Common,
    job: Job[Any, Any],
    *,
    then: Callable[[list[Path]], None] = lambda files: None,
) -> list[Path]:
    """Measure every checkpoint and return the result files.

    Args:
        patterns: of the checkpoints.
        common: the options that all commands share.
        job: what to measure.
        then: what to do with the result files, whether or not ``--strict`` refuses them after it.

    Raises:
        LandscapeError: what went wrong; with several checkpoints the others are measured first.
    """
    ranks = join(REPORT.launch)
    with ranks.unanimous():
        settings = settings_from(common)
        paths = expand_checkpoints(patterns)
    ranks.shared(lambda: require_writable(common.out))
    with ranks.unanimous():
        resolved, data = prepare_task(common, settings, paths)
    files: list[Path] = []
    failures: list[LandscapeError] = []
    unconverged: list[str] = []
    for path in paths:
        try:
            file, result = _measure(path, common, settings, job, resolved, data, ranks)
        except (TerminatedError, RankError):
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
        if not job.converged(result):
            unconverged.append(str(path))
    if failures:
        if len(failures) == len(paths):
            codes = {error.exit_code for error in failures}
            failed = LandscapeError(f"all {len(paths)} checkpoints failed")
            failed.exit_code = codes.pop() if len(codes) == 1 else 3
            raise failed
        raise PartialFailureError(f"{len(failures)} of {len(paths)} checkpoints failed")
    refused = bool(unconverged) and common.strict
    try:
        then(files)
    except LandscapeError as error:
        if not refused:
            raise
        REPORT.error(str(error), error.exit_code)
    if refused:
        raise NotConvergedError(
            f"not converged (--strict): {', '.join(unconverged)}. The results are stored; "
            f"{job.remedy}"
        )
    return files


def require_writable(folder: Path) -> None:
    """Find out before the computation, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp"):
            pass
    except OSError as error:
        raise ResultFileError.of(error, folder) from error


def _measure(
    path: Path,
    common: Common,
    settings: Settings,
    job: Job[Any, Any],
    resolved: ResolvedTask,
    data: DataSet,
    ranks: Alone = ALONE,
) -> tuple[Path, Result]:
    checkpoint = read_once(ranks, lambda: read_named(path, common))
    with ranks.unanimous():
        run = job.run(
            resolved=resolved,
            data=data,
            checkpoint=checkpoint,
            settings=settings,
            argv=("landscape", *REPORT.argv),
            ranks=ranks,
        )
    first = ranks.shared(lambda: run.key)
    with ranks.unanimous():
        if run.key != first:
            raise TaskError(
                "this process has read another task file, other data or other weights than the "
                "first one; expected the same in all. Fix the seed and the order of what the task "
                "reads, and give every node the same files"
            )
    file = common.out / result_name(str(path), run.command, run.key, job.suffix())
    with contextlib.ExitStack() as held:
        # One process at a time writes a result and its saved state.
        ranks.shared(lambda: held.enter_context(hold(Path(f"{file}.lock"), file.name)))
        return _measure_held(path, file, common, job, run, ranks)


def _measure_held(
    path: Path,
    file: Path,
    common: Common,
    job: Job[Any, Any],
    run: Measurement,
    ranks: Alone,
) -> tuple[Path, Result]:
    """Measure what is missing in a result file that nobody else works on."""
    earlier = ranks.shared(lambda: None if common.overwrite else _complete(file, run.key))
    if earlier is not None and job.satisfied(earlier, run):
        earlier = job.as_asked(earlier, run)
        REPORT.say(f"{printable(file)} is complete; nothing to do (--overwrite computes it again)")
        job.report(file, earlier, new=False)
        return file, earlier
    kept = MemoryUnits()  # Rank 0 keeps what there is to keep.
    with ranks.unanimous():
        if not ranks.rank:
            kept = _saved(file, run.key, common)
        if earlier is not None:
            job.extend(earlier, run, kept)
    if not isinstance(kept, PartialFile):
        result = run.measure(units=kept)
        ranks.shared(lambda: None)
        return file, result
    units = kept
    try:
        with progress_bar(path.name, quiet=common.quiet) as progress:
            result = run.measure(units=units, progress=progress)
    except BaseException:
        units.flush()
        raise
    if earlier is not None and job.lacks(result, earlier):
        ranks.shared(units.flush)
        REPORT.warn(
            f"{file} stays as it was: the budget did not reach beyond what it holds. The work is "
            "kept; a larger --budget, or the same one in seconds once more, goes on from it"
        )
        job.report(file, earlier, new=False)
        return file, earlier
    ranks.shared(lambda: _keep(file, result, units))
    job.report(file, result, new=True)
    return file, result


def _saved(file: Path, key: str, common: Common) -> PartialFile:
    """The state that an interrupted run has left."""
    units = PartialFile(file, key, interval=common.flush_seconds)
    if common.overwrite:
        units.clear()
    elif units.damaged:
        REPORT.warn(f"{units.path} cannot be read; what it held is computed again")
    if units.n_resumed:
        REPORT.say(f"resuming from {printable(units.path)} ({units.n_resumed} finished units)")
    return units


def _keep(file: Path, result: Result, units: PartialFile) -> None:
    """Save a result; what is unfinished in it stays beside it."""
    try:
        save(file, result)
    except LandscapeError:
        # The disk may be full, but what was saved before is smaller or stays as it is.
        with contextlib.suppress(LandscapeError):
            units.flush()
        raise
    if result.info.status == "complete":
        units.remove()
    else:
        units.flush()


def _complete(file: Path, key: str) -> Result | None:
    if not file.exists():
        return None
    result: Result = load(file)
    if result.info.key != key:
        raise ResultFileError(
            f"{file} holds a result of another configuration whose key begins alike; use another "
            "--out, or --overwrite"
        )
    return result
