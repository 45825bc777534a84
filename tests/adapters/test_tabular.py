"""Tables: what becomes of the columns, and the whole way from a CSV file to a spectrum."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.preprocessing import StandardScaler

from landscape import load, resolve_task
from landscape.errors import UsageError
from landscape_cli.app import run


@pytest.fixture
def wine(tmp_path: Path) -> Path:
    load_wine(as_frame=True).frame.to_csv(tmp_path / "wine.csv", index=False)
    return tmp_path / "wine.csv"


def task_for(path: Path, **settings: object):
    return resolve_task("sklearn-tabular", {"data": str(path), **settings}).task


def test_inputs_are_standardised_and_classes_counted(wine: Path) -> None:
    task = task_for(wine, target="target", hidden=[5, 4])
    raw = load_wine()
    inputs, targets = task.data
    expected = StandardScaler().fit_transform(raw.data)
    np.testing.assert_allclose(inputs.numpy(), expected, atol=1e-6)
    assert targets.tolist() == raw.target.tolist()
    assert task.criterion == "cross_entropy"
    assert [tuple(p.shape) for p in task.model.parameters()][::2] == [(5, 13), (4, 5), (3, 4)]


def test_held_out_rows_do_not_enter_the_statistics(wine: Path) -> None:
    settings = {"target": "target", "test_fraction": 0.25}
    parts = {
        split: task_for(wine, split=split, **settings).data[0].double()
        for split in ("train", "test", "all")
    }
    assert [len(part) for part in parts.values()] == [134, 44, 178]
    assert float(parts["train"].mean(0).abs().max()) < 1e-6
    assert float(parts["test"].mean(0).abs().max()) > 1e-2
    both = torch.cat([parts["train"], parts["test"]])
    torch.testing.assert_close(both.sort(0).values, parts["all"].sort(0).values)


def test_statistics_of_another_table(wine: Path, tmp_path: Path) -> None:
    table = pandas.read_csv(wine)
    table[::2].to_csv(tmp_path / "train.csv", index=False)
    table[1::2].to_csv(tmp_path / "test.csv", index=False)
    found = task_for(tmp_path / "test.csv", target="target", scale_by=str(tmp_path / "train.csv"))
    raw = load_wine().data
    expected = StandardScaler().fit(raw[::2]).transform(raw[1::2])
    np.testing.assert_allclose(found.data[0].numpy(), expected, rtol=1e-5, atol=1e-5)
    assert found.data[1].tolist() == load_wine().target[1::2].tolist()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    (tmp_path / "mixed.csv").write_text(
        "colour,size,sold,price\n"
        "red,1,True,0.5\nblue,2,False,1.5\nred,3,True,2.0\ngreen,4,True,3.0\n"
    )
    return tmp_path / "mixed.csv"


def test_words_and_truth_values_become_columns_of_their_own(mixed: Path) -> None:
    inputs, targets = task_for(mixed, target="price").data
    size = (np.arange(4) - 1.5) / np.std(np.arange(4))
    np.testing.assert_allclose(inputs[:, 0], size, rtol=1e-6)
    # blue, green, red; False, True.
    assert inputs[:, 1:].tolist() == [
        [0, 0, 1, 0, 1],
        [1, 0, 0, 1, 0],
        [0, 0, 1, 0, 1],
        [0, 1, 0, 0, 1],
    ]
    assert targets.tolist() == [[0.5], [1.5], [2.0], [3.0]]
    raw = task_for(mixed, target="price", standardise="none", columns=["size"])
    assert raw.data[0].tolist() == [[1], [2], [3], [4]]
    both = task_for(mixed, target="price", standardise="both").data[1]
    assert float(both.mean()) == pytest.approx(0, abs=1e-6)
    assert float(both.std(correction=0)) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("target", "settings", "criterion", "outputs"),
    [
        ("price", {}, "mse", 1),
        ("size", {}, "cross_entropy", 4),
        ("size", {"kind": "regression"}, "mse", 1),
        ("colour", {}, "cross_entropy", 3),
        ("sold", {}, "cross_entropy", 2),
        ("sold", {"outputs": 1}, "binary_cross_entropy", 1),
    ],
)
def test_kinds_of_targets(mixed: Path, target, settings, criterion, outputs) -> None:
    task = task_for(mixed, target=target, **settings)
    assert task.criterion == criterion
    assert task.model[-1].out_features == outputs
    if target == "sold":
        assert task.data[1].flatten().tolist() == [1, 0, 1, 1]


def test_from_a_table_to_a_spectrum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_diabetes(as_frame=True).frame.to_csv(tmp_path / "diabetes.csv", index=False)
    settings = [f"data={tmp_path / 'diabetes.csv'}", "target=target", "hidden=[4]"]
    settings += ["standardise=both", "test_fraction=0.2", "kind=regression"]
    given = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "run"
    train = ["train", "sklearn-tabular", *given, "-o", str(out), "--steps", "300"]
    assert run([*train, "--checkpoints", "2"]) == 0, capsys.readouterr().err
    last = str(out / "step_000300.safetensors")
    common = [last, "--task", "sklearn-tabular", *given, "-o", str(tmp_path / "results")]
    assert run(["hessian", *common, "--dtype", "float64"]) == 0
    assert run(["volume", *common, "--method", "quadratic", "--cutoff", "0.01"]) == 0
    [file] = tmp_path.glob("results/*.hessian.*.h5")
    result = load(file)
    assert result.info.n_examples == 354
    assert result.info.n_parameters == 4 * 10 + 4 + 4 + 1
    assert result.info.loss < 0.35  # The mean alone has 0.5.


def test_training_needs_rows_to_test_on(wine: Path, tmp_path: Path, capsys) -> None:
    given = ["--set", f"data={wine}", "--set", "target=target", "-o", str(tmp_path / "run")]
    assert run(["train", "sklearn-tabular", *given]) == 2
    assert "--set test_fraction=0.2" in capsys.readouterr().err


def test_other_adapters_cannot_be_trained(tmp_path: Path, capsys) -> None:
    assert run(["train", "hf-causal-lm", "-o", str(tmp_path)]) == 2
    assert "is not a built-in task" in capsys.readouterr().err


class TestWrongUse:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, "--set target=COLUMN is missing"),
            ({"target": "class"}, "no column 'class'; its columns: alcohol"),
            ({"target": "target", "columns": ["age"]}, "no column 'age'"),
            ({"target": "target", "columns": []}, "expected a list of columns"),
            ({"target": "target", "columns": ["target"]}, "expected a list of columns"),
            ({"target": "target", "hidden": 3}, r"expected a list such as \[32, 16\]"),
            ({"target": "target", "hidden": [0]}, "at least 1"),
            ({"target": "target", "activation": "step"}, "expected one of tanh"),
            ({"target": "target", "kind": "ranking"}, "expected one of auto, classification"),
            ({"target": "target", "outputs": 1}, "expected 3, or 1 for a logit of two classes"),
            ({"target": "target", "test_fraction": 1}, "from 0 to below 1"),
            ({"target": "target", "split": "test"}, "there are no test rows"),
            ({"target": "target", "standardise": "all"}, "expected one of inputs, both, none"),
            ({"target": "target", "scale_by": "absent.csv"}, "no such file"),
        ],
    )
    def test_settings(self, wine: Path, settings, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            task_for(wine, **settings)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a,y\n1,0\n,1\n", "1 missing values in 'a'"),
            ("a,y\n1,0\n2,\n", "1 missing values in 'y'"),
            ("y\n1\n", "has no column beside 'y'"),
            ("a,y\ninf,1\n2,0\n", "cannot be prepared: .*infinity"),
        ],
    )
    def test_tables(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(UsageError, match=message):
            task_for(tmp_path / "a.csv", target="y")

    def test_values_that_the_training_rows_do_not_have(self, mixed: Path, tmp_path: Path) -> None:
        (tmp_path / "new.csv").write_text("colour,size,sold,price\nviolet,1,True,0.5\n")
        with pytest.raises(UsageError, match="unknown categories"):
            task_for(tmp_path / "new.csv", target="price", scale_by=str(mixed))
        with pytest.raises(UsageError, match="has the label 'violet'"):
            task_for(tmp_path / "new.csv", target="colour", scale_by=str(mixed))

    def test_an_absent_library(self, wine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(UsageError, match=r"pip install 'landscape-geometry\[tabular\]'"):
            task_for(wine, target="target")
