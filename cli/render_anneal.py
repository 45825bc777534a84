"""What ``anneal`` rests on, as tables for people and as plain values for JSON; needs no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from landscape.volume.anneal_records import Annealing, Check, Curve
from landscape.volume.anneal_summary import at_radius, judgement
from landscape.volume.belief import DIFFER
from landscape.volume.mixing import Mixing, mixing
from landscape.volume.records import VolumeEstimate, VolumeResult
from landscape_cli.render import number
from landscape_cli.reporting import printable

__all__ = ["anneal_tables", "anneal_values"]


def anneal_tables(result: VolumeResult) -> list[Any]:
    """The judgement, the checks that failed, and a row of bounds for every cutoff.

    Empty without ``anneal``.
    """
    annealing = result.annealing
    if annealing is None:
        return []
    estimate = result.estimates["anneal"]
    failed = [check for check in annealing.checks if not check.passed]
    return [
        _summary(annealing, estimate),
        *[_failures(failed)] * bool(failed),
        *[_over_radius(annealing.curve)] * (len(annealing.curve.radius) > 1),
        _bounds(result, annealing, estimate),
    ]


def _summary(annealing: Annealing, estimate: VolumeEstimate) -> Table:
    table = Table(title="anneal", show_header=False, title_justify="left", box=None)
    table.add_column(style="bold")
    table.add_column()
    colour = "green" if annealing.converged else "yellow"
    table.add_row("judgement", f"[{colour}]{judgement(annealing)}[/{colour}]")
    if annealing.outward is not None:
        table.add_row("agreement", _agreement(annealing))
    table.add_row("islands", _islands(estimate))
    if found := mixing(annealing.ladder):
        table.add_row("mixing", _mixing(found))
    table.add_row("gradients", _gradients(annealing))
    if math.isinf(annealing.radius):
        table.add_row("symmetries", _symmetries(annealing))
    return table


def _agreement(annealing: Annealing) -> str:
    radius = annealing.agreed_radius
    if math.isnan(radius):
        return "both starts agree at no radius that was looked at"
    limit = ", no limit" if math.isinf(radius) else " prior standard deviations (rms)"
    text = f"both starts agree up to {at_radius(radius)}{limit}"
    gap = next((check for check in annealing.checks if check.name == DIFFER), None)
    if annealing.converged and gap is not None:
        text += f": {gap.value:.2g} nats apart, up to {gap.limit:.2g} is within their errors"
    return text


def _islands(estimate: VolumeEstimate) -> str:
    known = estimate.ess[estimate.ess == estimate.ess]
    count = int(estimate.n_samples.max(initial=0))
    if not len(known):
        return f"{count}"
    low, high = f"{known.min():.1f}", f"{known.max():.1f}"
    return f"{low if low == high else f'{low} to {high}'} effective of {count}"


def _mixing(found: Mapping[str, Mixing]) -> str:
    parts = [f"R-hat {m.rhat:.3g}, ESS {m.ess:.0f} ({what})" for what, m in found.items()]
    return f"{'; '.join(parts)}, of {next(iter(found.values())).draws} draws at the end"


def _gradients(annealing: Annealing) -> str:
    text = f"{annealing.n_gradients} of the whole data set"
    one, bare = annealing.gradient_seconds, annealing.bare_seconds
    if one == one:
        text += f"; {_time(one)} each, many chains together"
    if bare == bare:
        share = f" ({one / bare:.2g} of it)" if one == one and bare > 0 else ""
        text += f"; {_time(bare)} for the model alone{share}"
    return text


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _symmetries(annealing: Annealing) -> str:
    if not annealing.symmetries:
        return "no discrete one known"
    names = ", ".join(printable(name) for name in annealing.symmetries)
    total = number(float(annealing.log_orders.sum()))
    return f"{total} nats of copies in the value: {names}"


def _failures(failed: list[Check]) -> Table:
    table = Table(title="Checks that failed (anneal)", title_justify="left")
    table.add_column("check")
    for column in ("value", "expected"):
        table.add_column(column, justify="right")
    table.add_column("remedy")
    for check in failed:
        sign = "at least" if check.at_least else "at most"
        limit = f"{sign} {check.limit:.3g}"
        table.add_row(printable(check.name), f"{check.value:.3g}", limit, printable(check.remedy))
    return table


def _over_radius(curve: Curve) -> Table:
    table = Table(title="log V within R in nats, and distance (anneal)", title_justify="left")
    table.add_column("R", justify="right")
    for start in ("from the prior", "from the checkpoint"):
        table.add_column(start, justify="right")
        table.add_column("distance", justify="right")
    table.add_column("both starts")
    for row, radius in enumerate(curve.radius):
        cells = []
        for start in ("ladder", "outward"):
            value, stderr, distance = (
                float(getattr(curve, f"{start}{what}")[row])
                for what in ("", "_stderr", "_distance")
            )
            cells += [_difference(value, stderr), "" if math.isnan(distance) else number(distance)]
        name = "∞" if math.isinf(radius) else f"{radius:.3g}"
        table.add_row(name, *cells, printable(curve.findings[row]))
    return table


def _bounds(result: VolumeResult, annealing: Annealing, estimate: VolumeEstimate) -> Table:
    table = Table(title="95% bounds of log V in nats (anneal)", title_justify="left")
    difference = result.anharmonicity()
    reverse = bool((annealing.reverse < math.inf).any())
    table.add_column("cutoff", justify="right")
    table.add_column("above (Markov)", justify="right")
    if reverse:
        table.add_column("below (reverse run), valid only at equilibrium", justify="right")
    if difference is not None:
        table.add_column("anharmonicity: anneal - quadratic", justify="right")
    for c, cutoff in enumerate(estimate.cutoff):
        cells = [f"{cutoff:g}", number(annealing.markov[c])]
        if reverse:
            cells.append(number(annealing.reverse[c]) if annealing.reverse[c] < math.inf else "")
        if difference is not None:
            cells.append(_difference(*(float(part[c]) for part in difference)))
        table.add_row(*cells)
    return table


def _difference(value: float, stderr: float) -> str:
    if math.isnan(value):
        return ""
    return number(value) if math.isnan(stderr) else f"{number(value)} ± {stderr:.2g}"


def anneal_values(result: VolumeResult) -> dict[str, Any]:
    """The numbers behind the estimate, for JSON; empty without ``anneal``."""
    annealing = result.annealing
    if annealing is None:
        return {}
    difference = result.anharmonicity()
    named = zip(annealing.symmetries, annealing.log_orders.tolist(), strict=True)
    return {
        "converged": annealing.converged,
        "radius": annealing.radius,
        "agreed_radius": annealing.agreed_radius,
        "markov": annealing.markov,
        "reverse": annealing.reverse,
        "mixing": {name: dataclasses.asdict(m) for name, m in mixing(annealing.ladder).items()},
        "checks": [dataclasses.asdict(check) for check in annealing.checks],
        "curve": dict(vars(annealing.curve)),
        "symmetries": [{"name": name, "log_order": order} for name, order in named],
        "anharmonicity": None
        if difference is None
        else dict(zip(("value", "stderr"), difference, strict=True)),
        "n_gradients": annealing.n_gradients,
        "gradient_seconds": annealing.gradient_seconds,
        "bare_seconds": annealing.bare_seconds,
    }
