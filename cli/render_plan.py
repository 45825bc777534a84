"""The table of what a spectrum would cost over many processes."""

from __future__ import annotations

import dataclasses
from typing import Any

from landscape.checks import CheckReport
from landscape.cost import Cost, Measured, Scenario, predicted
from landscape_cli.render_amounts import amount_of_bytes, amount_of_time

__all__ = ["plan_table", "plan_values", "planned"]

_TOP, _DENSITY = 60, 800  # Products of ten eigenvalues, and of a density.


def planned(report: CheckReport, scenario: Scenario, number_bytes: int) -> tuple[Measured, Cost]:
    """What the check measured and what that predicts."""
    measured = Measured(
        parameters=report.n_parameters,
        examples=report.n_examples,
        product_seconds=report.product_seconds,
        # Where graphs did not fit, the measured product has rebuilt them already.
        gradient_seconds=report.gradient_seconds * (1 - report.rebuilt / report.n_batches),
        graph_bytes=report.plan.graph_bytes,
        batch=report.batch,
        example_bytes=report.data_bytes / report.n_examples,
        number_bytes=number_bytes,
    )
    return measured, predicted(measured, scenario)


def plan_values(scenario: Scenario, cost: Cost) -> dict[str, Any]:
    """The prediction for JSON."""
    return {
        **dataclasses.asdict(scenario),
        **dataclasses.asdict(cost),
        "memory_bytes": cost.memory,
        "product_seconds": cost.product_seconds,
        "fits": cost.memory <= scenario.memory,
    }


def plan_table(measured: Measured, scenario: Scenario, cost: Cost) -> Any:
    """The prediction for a person."""
    from rich.table import Table

    n = measured.parameters if scenario.parameters is None else scenario.parameters
    examples = measured.examples if scenario.examples is None else scenario.examples
    title = (
        f"predicted: {scenario.processes} processes, {n:.4g} parameters, {examples:.4g} examples"
    )
    table = Table(title=title, show_header=False, title_justify="left", box=None)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("parameters and vectors", f"{amount_of_bytes(cost.whole_bytes)} in every process")
    table.add_row(
        "Krylov basis",
        f"{amount_of_bytes(cost.basis_bytes)} in every process, {scenario.steps} vectors",
    )
    table.add_row("one gradient graph", amount_of_bytes(cost.graph_bytes))
    table.add_row("data", f"{amount_of_bytes(cost.data_bytes)} in every process")
    table.add_row("memory", f"{amount_of_bytes(cost.memory)}: {_verdict(scenario, cost)}")
    kept = "all" if cost.kept == 1 else f"{100 * cost.kept:.0f}%, the others are rebuilt"
    table.add_row("graphs kept", kept)
    table.add_row(
        "one product",
        f"{amount_of_time(cost.product_seconds)}, of which "
        f"{amount_of_time(cost.exchange_seconds)} exchange",
    )
    top, density = (amount_of_time(k * cost.product_seconds) for k in (_TOP, _DENSITY))
    table.add_row("expect", f"top 10 in about {top}, density in about {density}")
    return table


def _verdict(scenario: Scenario, cost: Cost) -> str:
    device = f"a device of {amount_of_bytes(scenario.memory)}"
    if cost.memory <= scenario.memory:
        return f"fits {device}"
    if cost.fewest is None:
        return (
            f"does not fit {device}, however many there are: the parameters themselves are too "
            "many. Measure part of them (--params), or a smaller network"
        )
    if cost.fewest <= scenario.processes:
        return f"does not fit {device}: use a smaller --batch-size"
    return f"does not fit {device}: needs {cost.fewest} of them, or fewer steps"
