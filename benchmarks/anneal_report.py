"""The Markdown report of a saved measurement of annealed log-volumes.

Usage: python benchmarks/anneal_report.py benchmarks/results/anneal_accuracy.json
"""

from __future__ import annotations

from typing import Any

import anneal_tables as tables
from anneal_closed import COPIES, COPIES_SEEDS
from anneal_closed import ERROR as CLOSED_ERROR
from anneal_closed import SEEDS as CLOSED_SEEDS
from anneal_cost import ROUNDS
from anneal_figure import draw
from anneal_learning import BURN, CHAINS, DRAWS
from anneal_quadratics import ERROR, GRADIENTS, PARTICLES, RAYS, SEEDS
from anneal_targets import targets
from report import write_report
from volume_problems import SPECTRA

Record = dict[str, Any]

_QUADRATICS = f"""\
The problems of `volume_accuracy.py`: excess loss `sum_i a_i (z_i - z*_i)^2 / 2`, cutoff 0.01, prior
N(0, I), one anchor z* ~ N(0, I) for each n; `a` = 1, `i^-1.5`, or 1 for a tenth of the directions
and else 0 (rank 10%). The mass matrix gets the exact curvature, of the power law 256 eigenvectors
and the mean of the others. Asked for, within 1e6 gradients: a standard error of {ERROR[10]:g} nat
at n = 10, {ERROR[1000]:g} nats at n = 100 and 1000, with {PARTICLES[1000]} chains; {ERROR[2000]:g}
nats at n = 2000, with {PARTICLES[2000]} chains and {GRADIENTS[2000]:.0e} gradients.

*t-interval covers*: in how many seeds the 95% t-interval over islands, whatever the verdict is,
holds the truth; where it says no more than a lower bound it covers nothing. *Converged*: both
starts agree and no check failed. *Reported holds*: whether the interval that a user sees does, from
the Markov bound to infinity where it did not converge. *Quadratic* (exact here), *radial* and
*symmetric* are the mean errors of the other methods, {RAYS} rays each with the same seeds;
*symmetric, maximum* that of the largest weight in place of the mean."""

_CLOSED = f"""\
Under the prior N(0, I), with the anchor where the loss is 0 (the origin, or (1, 1)); asked for: a
standard error of {CLOSED_ERROR:g} nat. *log V*: `(x y - 1)^2` is the whole set, both of its
components, and the part within R = 0.5 prior standard deviations (rms over coordinates) of (1, 1).
*log Z*: of {COPIES} independent copies at the ladder's end, where log Z adds up and log V does not;
*converged* is the verdict on log V of the same run."""

_COST = f"""\
One thread, processor time, best of {ROUNDS} interleaved rounds: a gradient of C chains in one call
over one gradient of the model by itself, in parts of the latter. *Chunk*: points that are evaluated
together; *one by one*: the library does not batch a network whose tensors fill its allowance."""

_MIXING = """\
Integrated autocorrelation time (24 chains of 100 trajectories after 10, at levels of a pilot of the
ladder, its steps and its mass matrix, arviz-stats' ESS of the mean) times leapfrog steps of a
trajectory: each is a gradient. Draws may be better than independent ones."""

_LEARNING = f"""\
`beta E[dL]` under `exp(-beta dL - |w - w*|^2 / 2)`, with its standard error over islands, from the
ladder at its levels; exact at beta by quadrature for `x^2 y^2 / 2`, else only the limit λ is
known (M, H, N = 5, 4, 5). devinterp 1.3.2 samples the same law by SGLD (localisation 1, {CHAINS}
chains of {DRAWS} steps after {BURN}, float32) and reports how far its chains spread, which is no
standard error of their mean. Its learning rates are two of many; neither was tuned, and the two
tools are given different numbers of gradients. *Verdict*: of the ladder's run on log V."""


def _head(results: Record) -> str:
    machine = results["hardware"]
    sections = results["sections"]
    done = [unit for section in sections.values() for unit in section.values()]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    loads = [unit["load"] for unit in done] or [machine["load"]]
    size = "Small problems (`--quick`): not the benchmark." if results["settings"]["quick"] else ""
    codes = sorted({unit["code"] for unit in done})
    minutes = sum(unit["seconds"] for unit in done) / 60
    own = sum(unit["cpu_seconds"] for unit in done) / 60
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 1e9:.0f} GB; one "
        f"thread; shared machine: load average {min(loads):.1f} to {max(loads):.1f} as units "
        f"began; {minutes:.0f} minutes of wall time, {own:.0f} of CPU time. Versions: {versions}. "
        f"Annealing code: {', '.join(codes) or '–'}.",
        size,
        _missing(results),
    ]
    return "\n\n".join(
        ["# Annealed log-volumes: accuracy, cost and mixing", *(line for line in lines if line)]
    )


def _missing(results: Record) -> str:
    """What of the full benchmark has not been measured."""
    if results["settings"]["quick"]:
        return ""
    notes = []
    quadratics = results["sections"].get("quadratics", {}).values()
    for n, planned in SEEDS.items():
        names = [unit["spectrum"] for unit in quadratics if unit["n"] == n]
        counts = [names.count(name) for name in SPECTRA]
        least, most = min(counts), max(counts)
        if least < planned:
            found = str(least or "none") if least == most else f"{least} to {most}"
            notes.append(f"quadratics, n = {n}: {found} of {planned} seeds of a spectrum")
    seeds: dict[str, set[int]] = {}
    for unit in results["sections"].get("closed forms", {}).values():
        seeds.setdefault(unit["what"], set()).add(unit["seed"])
    for what, planned in (("log V", CLOSED_SEEDS), ("log Z", COPIES_SEEDS)):
        found = len(seeds.get(what, ()))
        if found < planned:
            notes.append(f"closed forms, {what}: {found or 'none'} of {planned} seeds")
    notes += [
        f"{name}: not run"
        for name in ("network", "cost", "mixing", "learning")
        if not results["sections"].get(name)
    ]
    return f"**Incomplete** (the same command goes on): {'; '.join(notes)}." if notes else ""


def render(results: Record, picture: str) -> str:
    """The whole report."""
    sections = results["sections"]
    parts = [_head(results), f"![errors, curves, cost, mixing]({picture})"]
    parts += ["## Targets", targets(sections)]
    for name, title, text, build in (
        ("quadratics", "Quadratic problems", _QUADRATICS, tables.quadratics),
        ("closed forms", "Closed forms", _CLOSED, tables.closed),
        ("network", "Network", "", tables.network),
        ("cost", "Cost of a gradient", _COST, tables.cost),
        ("mixing", "Mixing", _MIXING, tables.mixing),
        ("learning", "Learning coefficients", _LEARNING, tables.learning),
    ):
        parts.append(f"## {title}")
        section = sections.get(name)
        if not section:
            parts.append("Not run.")
            continue
        parts += [text] if text else []
        parts.append(build(section))
        if name in ("quadratics", "closed forms"):
            parts.append(tables.failures(section))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_report(draw, render)
