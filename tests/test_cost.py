"""The cost model: its identities, the handbook's table, and what a real run holds."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from landscape.cost import Cost, Measured, Scenario, parse_scenario, predicted
from landscape.errors import UsageError

PAGE = Path(__file__).parents[1] / "docs" / "concepts" / "scale.md"
GIB = 2.0**30
MEASURED = Measured(
    parameters=1e6,
    examples=1000,
    product_seconds=3.0,
    gradient_seconds=1.0,
    graph_bytes=1e8,
    batch=100,
    example_bytes=400,
    number_bytes=4,
)


def test_one_process_as_measured():
    cost = predicted(MEASURED, Scenario(steps=49))
    assert cost.product_seconds == 3.0
    assert cost.exchange_seconds == 0
    assert cost.basis_bytes == 50 * 4e6
    assert cost.whole_bytes == 16e6
    assert cost.graph_bytes == 1e8
    assert cost.data_bytes == 4e5
    assert cost.kept == 1
    assert cost.memory == pytest.approx(50 * 4e6 + 16e6 + 1e8 + 4e5)
    assert cost.fewest == 1


@pytest.mark.parametrize("processes", [2, 3, 8, 1000])
def test_what_is_divided_and_what_is_not(processes):
    one, many = (predicted(MEASURED, Scenario(processes=p)) for p in (1, processes))
    assert many.basis_bytes == pytest.approx(one.basis_bytes / processes)
    assert many.data_bytes == pytest.approx(one.data_bytes / processes)
    assert many.whole_bytes == one.whole_bytes
    assert many.compute_seconds == pytest.approx(one.compute_seconds / processes)
    moved = many.exchange_seconds - 8 * 5e-5 * math.log2(processes)
    assert moved == pytest.approx(3 * (processes - 1) / processes * 4e6 / (25 * GIB))


def test_growth_with_parameters_and_examples():
    one = predicted(MEASURED, Scenario())
    larger = predicted(MEASURED, Scenario(parameters=8e6, examples=3000))
    assert larger.compute_seconds == pytest.approx(24 * one.compute_seconds)
    assert larger.graph_bytes == pytest.approx(4 * one.graph_bytes)
    assert predicted(MEASURED, Scenario(faster=10)).compute_seconds == pytest.approx(0.3)


def test_graphs_that_do_not_fit_are_rebuilt():
    one = predicted(MEASURED, Scenario(memory=16e6 + 4e5 + 101 * 4e6 + 1e9))
    assert one.kept == pytest.approx(0.5)  # Half of 1e9 bytes for ten graphs of 1e8.
    assert one.compute_seconds == pytest.approx(3.5)


def test_the_fewest_processes_are_just_enough():
    scenario = Scenario(steps=499, memory=16e6 + 1e6 + 3e8)
    fewest = predicted(MEASURED, scenario).fewest
    assert fewest == 7
    data = dataclasses.replace(MEASURED, batch=1, graph_bytes=1e6)
    for processes, fits in ((fewest, True), (fewest - 1, False)):
        cost = predicted(data, dataclasses.replace(scenario, processes=processes))
        assert (cost.memory <= scenario.memory) is fits
    assert predicted(MEASURED, Scenario(memory=15e6)).fewest is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpus=64", Scenario(processes=64)),
        ("processes=2", Scenario(processes=2)),
        (
            "gpus=8, parameters=7e9,examples=1e6,steps=200,memory=40GB,bandwidth=100GB/s,"
            "faster=2.5",
            Scenario(
                processes=8,
                parameters=7e9,
                examples=1e6,
                steps=200,
                memory=40 * GIB,
                bandwidth=100 * GIB,
                faster=2.5,
            ),
        ),
    ],
)
def test_scenarios(text, expected):
    assert parse_scenario(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not understood"),
        ("64", "is not understood"),
        ("gpu=64", "is not understood"),
        ("gpus=0", "expected a whole number such as 64"),
        ("gpus=1.5", "expected a whole number such as 64"),
        ("gpus=-1", "expected a whole number such as 64"),
        ("gpus=1e400", "expected a whole number such as 64"),
        ("gpus=2,processes=3", "processes is given twice"),
        ("gpus=2,memory=lots", "expected a number such as 80GB"),
        ("gpus=2,memory=80XB", "expected a number such as 80GB"),
        ("gpus=2,memory", "is not understood"),
        ("gpus=64GB", "expected a whole number such as 64"),
        ("gpus=64/s", "expected a whole number such as 64"),
        ("gpus=2,parameters=7GB", "expected a number such as 7e9"),
        ("gpus=2,parameters=0.5", "expected a number such as 7e9"),
        ("gpus=2,parameters=1e308", "expected a number such as 7e9"),
        ("gpus=2,memory=80", "expected a number such as 80GB"),
        ("gpus=2,memory=80GB/s", "expected a number such as 80GB"),
    ],
)
def test_wrong_scenarios(text, message):
    with pytest.raises(UsageError, match=message):
        parse_scenario(text)


# The handbook's table ----------------------------------------------------------------------------

TOKENS, FLOPS, GRAPH = 1e6, 1e14, 6e6  # Tokens; of a device, per second; bytes of a token at 1e9.


def assumed(n: float) -> Measured:
    """A transformer of n parameters as the handbook assumes it."""
    return Measured(
        parameters=n,
        examples=TOKENS,
        product_seconds=8 * n * TOKENS / FLOPS,
        gradient_seconds=6 * n * TOKENS / FLOPS,
        graph_bytes=1024 * GRAPH * (n / 1e9) ** (2 / 3),
        batch=1024,
        example_bytes=8,
        number_bytes=4,
    )


def short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def cell(cost: Cost, memory: float) -> str:
    fits = "" if cost.memory <= memory else " (too much)"
    seconds = cost.product_seconds
    time = f"{short(seconds * 1e3)} ms" if seconds < 1 else f"{short(seconds)} s"
    return f"{short(cost.memory / GIB)} GB{fits}, {time}"


def rows() -> list[str]:
    """The table's rows."""
    found = []
    for n in (1e5, 1e6, 1e7, 1e8, 1e9, 3e9, 7e9, 7e10):
        costs = [predicted(assumed(n), Scenario(processes=p)) for p in (1, 8, 64)]
        fewest = "none" if costs[0].fewest is None else str(costs[0].fewest)
        cells = " | ".join(cell(cost, Scenario().memory) for cost in costs)
        size = f"{n:.0e}".replace("e+0", "e").replace("e+", "e")
        found.append(f"| {size} | {cells} | {fewest} |")
    return found


def test_the_handbook_s_table_is_the_model_s():
    text = PAGE.read_text()
    for row in rows():
        assert row in text, "\n".join(rows())
