from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from landscape import training_files
from landscape.errors import NotFiniteError, UsageError
from landscape.task import resolve_task
from landscape.tasks import BUILTIN_TASKS, digits_mlp, sparse_mlp
from landscape.training import TrainingPoint, train
from landscape.training_files import log_spaced_steps


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def weights(folder):
    return [load_file(path) for path in sorted(folder.glob("*.safetensors"))]


class TestSteps:
    @pytest.mark.parametrize("steps", [0, 1, 2, 3, 7, 10, 100, 1000, 123456])
    @pytest.mark.parametrize("checkpoints", [2, 3, 5, 10, 30, 200])
    def test_exactly_as_many_as_there_are(self, steps, checkpoints):
        chosen = log_spaced_steps(steps, checkpoints)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == min(checkpoints, steps + 1)
        assert chosen[0] == 0
        assert chosen[-1] == steps

    def test_log_spacing(self):
        assert log_spaced_steps(1000, 5) == [0, 1, 10, 100, 1000]

    @pytest.mark.parametrize("steps", [0, 1, 50])
    def test_one_checkpoint_is_the_last_step(self, steps):
        assert log_spaced_steps(steps, 1) == [steps]

    def test_two_checkpoints_are_both_ends(self):
        assert log_spaced_steps(50, 2) == [0, 50]


class TestFiles:
    def test_names_metadata_and_points(self, tmp_path):
        seen = []
        points = train(
            "digits-mlp",
            {"width": 4},
            steps=20,
            checkpoints=3,
            seed=7,
            out=tmp_path / "new" / "run",
            progress=seen.append,
        )
        assert seen == points
        assert all(isinstance(point, TrainingPoint) for point in points)
        assert [point.path.name for point in points] == [
            f"step_{step:06d}.safetensors" for step in (0, 1, 20)
        ]
        assert sorted(point.path for point in points) == sorted((tmp_path / "new/run").iterdir())
        last = metadata(points[-1].path)
        assert last["task"] == "digits-mlp"
        assert json.loads(last["settings"]) == {
            "width": 4,
            "depth": 1,
            "activation": "tanh",
            "bias": True,
        }
        assert (last["step"], last["seed"], last["device"]) == ("20", "7", "cpu")
        assert float(last["train_loss"]) == points[-1].train_loss
        assert float(last["test_loss"]) == points[-1].test_loss
        assert float(last["train_accuracy"]) == points[-1].train_accuracy
        assert float(last["test_accuracy"]) == points[-1].test_accuracy
        assert last["landscape_version"]
        assert json.loads(last["recipe"])["steps"] == 20

    @pytest.mark.parametrize("name", BUILTIN_TASKS)
    def test_recorded_loss_is_the_checkpoints_loss(self, name, tmp_path):
        point = train(name, steps=3, checkpoints=1, out=tmp_path)[0]
        assert point.step == 3
        for split, recorded in (("train", point.train_loss), ("test", point.test_loss)):
            task = resolve_task(name, {"split": split}).task
            task.model.load_state_dict(load_file(point.path))
            loss = task.resolved_criterion.loss(task.forward(task.model, task.data), task.data)
            assert loss.item() == pytest.approx(recorded, rel=1e-5)
        regression = name in ("regression-mlp", "two-tasks")
        assert (point.train_accuracy is None) == regression
        assert ("test_accuracy" in metadata(point.path)) == (not regression)

    def test_tied_weights_are_saved_once_under_the_first_name(self, tmp_path):
        settings = {"tie": True, "d_model": 8, "heads": 2, "sequences": 8}
        point = train("char-lm", settings, steps=2, checkpoints=1, out=tmp_path)[0]
        model = resolve_task("char-lm", settings).task.model
        saved = load_file(point.path)
        assert set(saved) == {name for name, _ in model.named_parameters()}
        assert "tokens.weight" in saved
        assert "unembedding.weight" not in saved

    def test_batch_norm_buffers_are_saved(self, tmp_path):
        point = train("digits-cnn", {"norm": "batch"}, steps=2, checkpoints=1, out=tmp_path)[0]
        saved = load_file(point.path)
        assert saved["1.num_batches_tracked"] == 2
        assert saved["1.running_mean"].abs().max() > 0

    def test_digits_of_the_name_grow_with_the_steps(self, tmp_path, monkeypatch):
        monkeypatch.setattr("landscape.training._optimise", lambda *_: iter([1.0] * 1_000_000))
        points = train("regression-mlp", steps=1_000_000, checkpoints=2, out=tmp_path)
        assert [p.path.stem for p in points] == ["step_0000000", "step_1000000"]

    def test_a_failed_write_leaves_no_file(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(training_files.os, "replace", refuse)
        with pytest.raises(UsageError, match="cannot be written: No space left"):
            train("regression-mlp", steps=1, out=tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestReproducible:
    @pytest.mark.parametrize("name", ["digits-mlp", "char-lm", "sparse-mlp"])
    def test_same_seed_same_files(self, name, tmp_path):
        for folder in ("a", "b"):
            torch.manual_seed(random.randrange(1000))
            train(name, steps=15, checkpoints=3, seed=3, out=tmp_path / folder)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_other_seed_other_weights_at_every_step(self, tmp_path):
        for seed in (0, 1):
            train("digits-mlp", steps=5, checkpoints=3, seed=seed, out=tmp_path / str(seed))
        for a, b in zip(weights(tmp_path / "0"), weights(tmp_path / "1"), strict=True):
            assert a.keys() == b.keys()
            assert all(not torch.equal(a[key], b[key]) for key in a)

    def test_number_of_checkpoints_does_not_change_the_training(self, tmp_path):
        last = [
            train("digits-cnn", {"norm": "batch"}, steps=12, checkpoints=k, out=tmp_path / str(k))
            for k in (1, 6)
        ]
        assert last[0][-1].path.read_bytes() == last[1][-1].path.read_bytes()

    def test_global_random_state_is_untouched(self, tmp_path):
        torch.manual_seed(5)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        train("digits-mlp", steps=5, out=tmp_path)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
        assert before[2] == random.getstate()


class TestFolder:
    def test_the_same_run_again_rewrites_the_same_files(self, tmp_path):
        train("digits-mlp", steps=5, checkpoints=3, out=tmp_path)
        before = contents(tmp_path)
        # A setting at its default is the same run.
        train("digits-mlp", {"width": 16}, steps=5, checkpoints=3, out=tmp_path)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize(
        ("name", "settings", "changes", "differing"),
        [
            ("digits-mlp", {}, {"seed": 1}, "seed"),
            ("digits-mlp", {}, {"steps": 6}, "recipe"),
            ("digits-mlp", {"width": 4}, {}, "settings"),
            ("digits-cnn", {}, {}, "task"),
        ],
    )
    def test_another_run_is_refused_unless_overwritten(
        self, name, settings, changes, differing, tmp_path
    ):
        train("digits-mlp", steps=5, checkpoints=4, out=tmp_path)
        before = contents(tmp_path)
        options = {"steps": 5, "checkpoints": 2, "out": tmp_path, **changes}
        with pytest.raises(UsageError, match=rf"another run: step_000000.* {differing}.*overwrite"):
            train(name, settings, **options)
        assert contents(tmp_path) == before
        points = train(name, settings, overwrite=True, **options)
        assert sorted(tmp_path.iterdir()) == [point.path for point in points]
        assert {metadata(path)["task"] for path in tmp_path.iterdir()} == {name}

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_foreign_checkpoints_are_never_deleted(self, overwrite, tmp_path):
        save_file({"w": torch.ones(2)}, tmp_path / "step_000000.safetensors")
        (tmp_path / "notes.txt").write_text("kept")
        before = contents(tmp_path)
        with pytest.raises(UsageError, match="not written by a training run"):
            train("digits-mlp", steps=1, out=tmp_path, overwrite=overwrite)
        assert contents(tmp_path) == before

    def test_an_unreadable_checkpoint_counts_as_foreign(self, tmp_path):
        (tmp_path / "step_000000.safetensors").write_bytes(b"broken")
        with pytest.raises(UsageError, match="not written by a training run"):
            train("digits-mlp", steps=1, out=tmp_path, overwrite=True)

    @pytest.mark.parametrize("below", [".", "deeper"])
    def test_unwritable_folder(self, below, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="cannot be written"):
            train("digits-mlp", steps=1, out=tmp_path / "file" / below)


class TestRefused:
    @pytest.mark.parametrize("name", ["digits", "my_task.py", "digits-mlp:build"])
    def test_not_a_built_in_task(self, name, tmp_path):
        with pytest.raises(UsageError, match=r"not a built-in task.*digits-mlp"):
            train(name, steps=1, out=tmp_path)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": -1}, "steps -1"),
            ({"checkpoints": 0}, "checkpoints 0"),
            ({"device": "tpu9"}, "device 'tpu9'"),
            ({"seed": 2**64}, "seed 18446744073709551616"),
            ({"settings": {"split": "all"}}, "setting split"),
            ({"settings": {"width": -1}}, "width=-1"),
        ],
    )
    def test_wrong_options(self, options, message, tmp_path):
        with pytest.raises(UsageError, match=message):
            train("digits-mlp", out=tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()

    def test_non_finite_loss_names_the_step(self, tmp_path, monkeypatch):
        recipe = replace(
            digits_mlp.RECIPE, learning_rate=1e38, optimiser="sgd", momentum=0.9, cosine=False
        )
        monkeypatch.setattr(digits_mlp, "RECIPE", recipe)
        with pytest.raises(NotFiniteError, match=r"stopped at step \d+: .* loss is (nan|inf)"):
            train("digits-mlp", {"activation": "relu"}, steps=10, checkpoints=2, out=tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["step_000000.safetensors"]


def test_digits_mlp_learns(tmp_path):
    point = train("digits-mlp", checkpoints=1, out=tmp_path)[0]
    assert 1e-4 < point.train_loss < 0.06
    assert point.test_accuracy > 0.95


class TestSparse:
    """``sparse-mlp``: the penalty of the hidden activations belongs to training alone."""

    @staticmethod
    def trained(folder, **settings):
        """The model after training, and its point."""
        settings = {"width": 32, **settings}
        point = train("sparse-mlp", settings, steps=300, checkpoints=1, out=folder)[0]
        task = resolve_task("sparse-mlp", settings).task
        task.model.load_state_dict(load_file(point.path))
        return task, point

    def test_a_penalty_gives_sparser_activations_at_like_accuracy(self, tmp_path):
        share = {}
        for l1 in (0, 0.01):
            task, point = self.trained(tmp_path / str(l1), l1=l1)
            with torch.no_grad():
                _, (hidden,) = task.model.activations(task.data[0])
            share[l1] = float((hidden > 0).double().mean())
            assert point.test_accuracy > 0.93
        assert share[0.01] < 0.5 * share[0]
        assert share[0] > 0.5

    def test_the_loss_that_is_reported_and_measured_has_no_penalty(self, tmp_path):
        task, point = self.trained(tmp_path, l1=0.5)
        with torch.no_grad():
            loss = task.resolved_criterion.loss(task.model(task.data[0]), task.data)
            whole = sparse_mlp.training_loss(task, task.data)
            hidden = torch.relu(task.model[0](task.data[0]))
        assert point.train_loss == pytest.approx(loss.item(), rel=1e-5)
        penalty = 0.5 * hidden.double().sum() / len(hidden)
        assert whole.item() == pytest.approx(loss.item() + penalty.item(), rel=1e-5)

    def test_without_penalty_it_trains_as_digits_mlp_does(self, tmp_path):
        settings = {"width": 8, "activation": "relu"}
        mine = train("sparse-mlp", {**settings, "l1": 0}, steps=20, out=tmp_path / "a")
        other = train("digits-mlp", settings, steps=20, out=tmp_path / "b")
        assert [p.train_loss for p in mine] == [p.train_loss for p in other]

    def test_every_hidden_layer_is_penalised_and_none_is_fine(self, tmp_path):
        task = resolve_task("sparse-mlp", {"width": 4, "depth": 3}).task
        assert len(task.model.activations(task.data[0])[1]) == 3
        train("sparse-mlp", {"depth": 0}, steps=2, checkpoints=1, out=tmp_path)

    @pytest.mark.parametrize("l1", [-0.1, float("inf"), float("nan"), True, "0.1"])
    def test_wrong_coefficients(self, l1):
        with pytest.raises(UsageError, match=r"setting l1=.*number of at least 0"):
            resolve_task("sparse-mlp", {"l1": l1})
