"""The example tasks: they train, pass the checks and can be measured."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from landscape import HessianOptions, Risk, Settings, hessian_spectrum, load, resolve_task
from landscape.data import materialise
from landscape.operators import curvature
from landscape_cli.app import run

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

# (task file, script that trains, its arguments, settings of the task, checkpoint)
TASKS = [
    ("my_task.py", "train_my_model.py", ["--width", "6"], ["width=6"], "my_model.pt"),
    ("language_model_task.py", "language_model_task.py", [], [], "language_model.pt"),
    ("custom_criterion_task.py", "custom_criterion_task.py", [], [], "poisson.pt"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from threads and wait long for them on a busy machine."""
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.random.set_rng_state(state)


def test_every_example_is_tested() -> None:
    tested = {name for task, script, *_ in TASKS for name in (task, script)}
    assert tested == {path.name for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize(
    ("task", "script", "arguments", "settings", "checkpoint"), TASKS, ids=[t[0] for t in TASKS]
)
def test_an_example_trains_passes_the_checks_and_is_measured(
    task: str,
    script: str,
    arguments: list[str],
    settings: list[str],
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    common = [checkpoint, "--task", str(EXAMPLES / task)]
    common += [part for setting in settings for part in ("--set", setting)]
    assert run(["inspect", checkpoint]) == 0
    assert run(["check", *common]) == 0, capsys.readouterr().err
    both = ["--operator", "hessian", "--operator", "ggn"]
    assert run(["hessian", *common, *both, "--strict"]) == 0, capsys.readouterr().err
    [file] = tmp_path.glob("results/*.h5")
    result = load(file)
    # Trained: the loss has fallen well below that of a network that knows nothing.
    knows_nothing = {"my_model.pt": 1.1, "language_model.pt": 2.5, "poisson.pt": 0.0}[checkpoint]
    assert result.info.loss < knows_nothing - 0.5
    assert set(result.spectra) == {"hessian", "ggn"}
    assert result.spectra["ggn"].eigenvalues[-1] > -1e-12 * result.spectra["ggn"].eigenvalues[0]


def test_the_custom_criterions_behaviour_hessian_is_its_ggn() -> None:
    resolved = resolve_task(str(EXAMPLES / "custom_criterion_task.py"), {"width": 5})
    risk = Risk(resolved.task, materialise(resolved.task.data), loss="behaviour", batch_size=64)
    assert abs(risk.loss()) < 1e-14
    assert float(risk.gradient().abs().max()) < 1e-14
    unit = torch.eye(risk.n, dtype=torch.float64)
    hessian, ggn = (curvature(name, risk).rows(unit) for name in ("hessian", "ggn"))
    assert float(hessian.abs().max()) > 0.1
    torch.testing.assert_close(hessian, ggn, rtol=0, atol=1e-13 * float(ggn.abs().max()))


def test_the_custom_criterions_divergence_is_the_kl_of_poisson_laws() -> None:
    criterion = resolve_task(str(EXAMPLES / "custom_criterion_task.py")).task.resolved_criterion
    generator = torch.Generator().manual_seed(0)
    outputs, anchor = torch.randn(2, 50, 1, dtype=torch.float64, generator=generator)
    laws = (torch.distributions.Poisson(f.exp()) for f in (anchor, outputs))
    expected = torch.distributions.kl_divergence(*laws).mean()
    torch.testing.assert_close(criterion.divergence(outputs, anchor, ()), expected)


def test_the_custom_criterion_can_be_relabelled() -> None:
    result = hessian_spectrum(
        str(EXAMPLES / "custom_criterion_task.py"),
        settings=Settings(loss="relabelled"),
        options=HessianOptions(top=2),
    )
    assert result.spectra["hessian"].converged.all()


def test_padding_of_the_language_model_does_not_count() -> None:
    task = resolve_task(str(EXAMPLES / "language_model_task.py")).task
    risk = Risk(task, materialise(task.data), batch_size=7)
    [batch] = task.data
    ids, labels = batch["input_ids"], batch["labels"]
    counted = labels != 0
    assert 0 < int(counted.sum()) < counted.numel()
    with torch.no_grad():
        expected = functional.cross_entropy(task.model(ids)[counted], labels[counted])
    assert risk.loss() == pytest.approx(float(expected), rel=1e-13)
    # The tied embedding is one set of coordinates.
    assert risk.n == sum(p.numel() for p in task.model.parameters())
    assert "unembed.weight" not in risk.space.names
