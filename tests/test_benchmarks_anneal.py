"""The annealing benchmark runs, continues where it stopped, and reports what it holds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
CHEAP = ("quadratics", "closed forms", "cost", "mixing", "learning")


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return FOLDER


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_quick(tmp_path):
    command = [sys.executable, str(FOLDER / "anneal_accuracy.py"), "--quick", "--out"]
    command += [str(tmp_path), "--only", *CHEAP]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "anneal_accuracy.md")
    text = (tmp_path / "anneal_accuracy.json").read_text()
    sections = json.loads(text, parse_constant=refuse)["sections"]
    assert tuple(sections) == CHEAP
    for unit in (*sections["quadratics"].values(), *sections["closed forms"].values()):
        assert abs(unit["value"] - unit["truth"]) < 6 * unit["stderr"]
    report = (tmp_path / "anneal_accuracy.md").read_text()
    assert "| network | not run | – |" in report
    assert "(anneal_accuracy.png)" in report
    assert (tmp_path / "anneal_accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_stopped_run_continues(benchmarks, tmp_path):
    from anneal_units import Kept

    path, done, settings = tmp_path / "kept.json", [], {"quick": True}

    def unit(name):
        def measure():
            done.append(name)
            if len(done) == 2:
                raise KeyboardInterrupt
            return {"value": math.nan}

        return name, measure

    with pytest.raises(KeyboardInterrupt):
        Kept(path, settings).work("some", iter([unit("a"), unit("b")]), print)
    Kept(path, settings).work("some", iter([unit("a"), unit("b")]), print)
    assert done == ["a", "b", "b"]
    assert Kept(path, settings).section("some")["a"]["value"] is None
    assert Kept(path, {"quick": False}).section("some") == {}
    assert Kept(path, settings, fresh=("some",)).section("some") == {}


# A made-up measurement --------------------------------------------------------------------------

SPENT = {"seconds": 90.0, "cpu_seconds": 30.0, "load": 1.5, "code": "0123abcd"}


def annealed(*, truth=None, value=-10.0, converged=True, seed=0, tether=None):
    return {
        **SPENT,
        "truth": truth,
        "seed": seed,
        "tether": tether,
        "error": 1.0,
        "value": value,
        "stderr": 0.5,
        "lower": value - 1.2,
        "upper": value + 1.2,
        "label": "estimate",
        "reported": [value - 1.2, value + 1.2] if converged else [value - 3, None],
        "converged": converged,
        "failed": [] if converged else [{"name": "log V differs by", "value": 9.0, "limit": None}],
        "agreed_radius": "inf" if converged else 0.537,
        "markov": value - 3,
        "gradients": 1e5,
        "islands": 8,
    }


def curve():
    columns = {"ladder": [-12.0, None, -10.0], "ladder_stderr": [0.5, None, 0.6]}
    columns |= {"outward": [-12.5, -11.0, -10.5], "outward_stderr": [0.4, 0.5, 0.6]}
    columns |= {"ladder_distance": [0.2, None, 0.9], "outward_distance": [0.2, 0.5, 0.8]}
    findings = ["agree", "no run from the prior", "log V differs by 5, not 2"]
    return {**columns, "radius": [0.2, 0.5, None], "findings": findings}


def made_up():
    rays = {"value": -11.0, "maximum": -9.0}
    wrong = {"radial": rays, "symmetric": rays, "n": 1000, "spectrum": "power law"}
    runs = [annealed(truth=-10.4, seed=seed) for seed in range(4)]
    runs.append(annealed(truth=-14.0, seed=4, converged=False))
    estimate = {"log_volume": -9.0, "stderr": 0.0, "lower": -9.0, "upper": None}
    cheap = {"n": 1066, "examples": 400, "steps": 1000, "train_loss": 0.01, "test_accuracy": 0.9}
    cheap |= {"cutoff": 0.0081, "sigma": 0.34}
    cheap["methods"] = {
        name: {**estimate, "lower_bound": name != "quadratic"} for name in ("quadratic", "radial")
    }
    network = {"quadratic and rays": {**cheap, **SPENT}}
    for seed in (0, 1):
        network[f"seed {seed}, R = inf"] = {
            **annealed(converged=False, seed=seed),
            "curve": curve(),
        }
        network[f"seed {seed}, R = 0.5"] = {
            **annealed(value=-12.0 - 3 * seed, seed=seed, tether=0.5),
            "curve": curve(),
        }
    failed = {"case": "deep linear, rank 0", "method": "devinterp", "beta": 1e3, "rate": 1e-5}
    failed["failures"] = [["pip install devinterp", "ERROR: no such thing"]]
    return {
        "settings": {"quick": False, "limit": 1_000_000, "threads": 1},
        "hardware": {"cpu": "abacus", "cores": 2, "memory": 24e9, "load": 1.0},
        "versions": {"landscape": "0"},
        "sections": {
            "quadratics": {str(seed): {**run, **wrong} for seed, run in enumerate(runs)},
            "network": network,
            "learning": {"failed": {**failed, **SPENT}},
        },
    }


def test_the_report_says_what_is_missing_and_not_met(benchmarks, tmp_path):
    from anneal_figure import draw
    from anneal_report import render

    results = made_up()
    draw(results, tmp_path / "made.png")
    assert (tmp_path / "made.png").read_bytes().startswith(b"\x89PNG")
    report = render(results, "made.png")
    assert "quadratics, n = 2000: none of 20 seeds" in report
    assert "mixing: not run" in report
    targets = report[report.index("## Targets") : report.index("## Quadratic")].splitlines()
    verdict = {
        row.split(" | ")[0].strip("| "): row.split(" | ")[2].strip("| ")
        for row in targets
        if row.count(" | ") > 1
    }
    power = "quadratic, n = 1000, power law"
    assert verdict[f"{power}: t-interval covers in 17 of 20"] == "**not met**"
    assert verdict["network, R = inf: both starts agree up to a reported R"] == "met"
    assert verdict["network, R = 0.5: converged (both starts agree)"] == "met"
    seeds = "seeds within 2 standard errors of their difference"
    assert verdict[f"network, R = inf: {seeds}"] == "met"
    assert verdict[f"network, R = 0.5: {seeds}"] == "**not met**"
    assert verdict["cost"] == "–"
    assert "`pip install devinterp`: ERROR: no such thing" in report
    assert "| 0.200 | -12.0 ± 0.5 | 0.200 | -12.5 ± 0.4 | 0.200 | agree |" in report


def test_the_radius_at_which_all_runs_agree(benchmarks):
    from anneal_network import agreed

    assert agreed([{"agreed_radius": 0.537}, {"agreed_radius": "inf"}]) == 0.5
    assert agreed([{"agreed_radius": 0.03}, {"agreed_radius": 0.2}]) == 0.03
    assert agreed([{"agreed_radius": "inf"}, {"agreed_radius": "inf"}]) is None
    assert agreed([{"agreed_radius": None}, {"agreed_radius": 0.25}]) == 0.2
    assert agreed([{"missing": "too few"}, {"agreed_radius": None}]) is None


def test_truths_of_closed_forms_by_counting(benchmarks):
    """Plain Monte Carlo, far from the cutoffs of the benchmark but by another road."""
    from anneal_closed import FORMS
    from anneal_residuals import Squares

    generator = torch.Generator().manual_seed(0)
    for form in FORMS.values():
        z = torch.randn(200_000, len(form.anchor), generator=generator, dtype=torch.float64)
        losses, slopes = Squares(form.residuals)(z)
        inside = losses <= 0.04
        if form.tether is not None:
            inside &= (z - 1).square().mean(1) <= form.tether**2
        for values, truth in (
            (inside.double(), form.volume(0.04)),
            (torch.exp(-10 * losses), form.partition(10.0)),
        ):
            spread = float(values.std()) / math.sqrt(len(values))
            assert abs(float(values.mean()) - truth) < 4.5 * spread
        assert slopes.shape == z.shape


def test_the_learning_coefficient_of_two_factors(benchmarks):
    from anneal_learning import half_squares

    x, y = np.meshgrid(*[np.linspace(-8, 8, 1601)] * 2)
    weight = np.exp(-(x**2 + y**2) / 2 - 10 * (x * y) ** 2 / 2)
    direct = 10 * (weight * (x * y) ** 2 / 2).sum() / weight.sum()
    assert half_squares(10.0) == pytest.approx(direct, rel=1e-6)
    assert half_squares(100.0) == pytest.approx(0.3388, abs=1e-4)
