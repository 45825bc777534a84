"""Log-volumes over the training step as tables and as plain values for JSON; needs no torch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from landscape.volume.records import CLASSES
from landscape_cli.reporting import printable

if TYPE_CHECKING:
    from landscape.volume_series import MethodSeries, VolumeSeries

__all__ = ["volume_parts"]

_TERMS = ("width", "location", "remainder")


def volume_parts(
    series: VolumeSeries,
) -> tuple[list[tuple[str, str]], list[Table], dict[str, Any]]:
    """Rows of the summary, a table with a row per step for every cutoff, and values for JSON."""
    config = series.config
    cost = (
        f"{series.n_matvecs.sum()} products, {series.n_forward.sum()} forward passes, "
        f"{series.wall_seconds.sum():.2f} s in all"
    )
    rows = [("prior", f"{printable(config.get('prior'))}, mean {printable(config.get('mean'))}")]
    if config.get("tether") is not None:
        rows.append(("tether", f"within {printable(config['tether'])} prior standard deviations"))
    rows.append(("cost", cost))
    return rows, [_table(series, place) for place in range(len(series.cutoff))], _values(series)


def _table(series: VolumeSeries, place: int) -> Table:
    unit = printable(series.config.get("units", "loss units"))
    table = Table(title=f"log V in nats at cutoff {series.cutoff[place]:g} {unit}")
    table.title_justify = "left"
    methods = series.methods.values()
    # Only one method knows the terms.
    terms = [m for m in methods if bool((m.width[:, place] == m.width[:, place]).any())][:1]
    known = bool((series.counts[:, place] == series.counts[:, place]).any())
    columns = ["step" if series.numbered else "checkpoint"]
    columns += [printable(name) for name in series.methods]
    columns += [*_TERMS, "eff. dim."] * len(terms) + list(CLASSES) * known
    for column in columns:
        table.add_column(column, justify="left" if column == "checkpoint" else "right")
    for row in range(len(series.step)):
        name = series.step[row] if series.numbered else Path(series.checkpoint[row]).name
        cells = [printable(name), *(_log_volume(method, row, place) for method in methods)]
        for method in terms:
            cells += [_short(getattr(method, term)[row, place]) for term in _TERMS]
            cells.append(_short(method.effective_dimension[row, place]))
        if known:
            cells += ["" if math.isnan(c) else f"{c:.0f}" for c in series.counts[row, place]]
        table.add_row(*cells)
    if any(bool(method.lower_bound[:, place].any()) for method in methods):
        table.caption = "≥ lower bound only"
        table.caption_justify = "left"
    return table


def _log_volume(method: MethodSeries, row: int, place: int) -> str:
    value, stderr = method.log_volume[row, place], method.stderr[row, place]
    if method.lower_bound[row, place]:
        return f"[yellow]≥ {_short(method.lower[row, place])}[/yellow]"
    return _short(value) if not stderr > 0 else f"{_short(value)} ± {stderr:.1g}"


def _short(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.6g}" if abs(value) >= 1 else f"{value:.3g}"


def _values(series: VolumeSeries) -> dict[str, Any]:
    values: dict[str, Any] = {"cutoff": series.cutoff, "n_forward": series.n_forward}
    for name, method in series.methods.items():
        values[name] = {k: v for k, v in dataclasses.asdict(method).items() if k != "method_name"}
    values["directions"] = {
        label: {"count": series.counts[:, :, k], "nats": series.nats[:, :, k]}
        for k, label in enumerate(CLASSES)
    }
    return values
