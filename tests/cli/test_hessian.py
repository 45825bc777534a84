"""``landscape hessian``: files, resuming, exit codes and what goes to which stream."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch

import landscape
from landscape.errors import NotFiniteError


@pytest.fixture
def measure(cli, tiny):
    """Measure the tiny network with more arguments."""

    def command(*arguments, checkpoints=None, task=None):
        chosen = [tiny.checkpoint] if checkpoints is None else checkpoints
        task = tiny.task if task is None else task
        return cli("hessian", *chosen, "--task", task, "-o", tiny.folder / "out", *arguments)

    return command


def results(tiny):
    return sorted((tiny.folder / "out").iterdir())


def only(tiny):
    (file,) = results(tiny)
    return file


HESSIAN = (sys.executable, "-m", "landscape_cli", "hessian")
LANCZOS = ("--method", "lanczos", "--dtype", "float64", "--steps", "6", "--top", "2")


class TestProducts:
    ARGUMENTS = ("--method", "lanczos", "--no-density", "--top", "2", "--products", "float32")

    def test_are_verified_in_float64(self, measure, tiny):
        done = measure(*self.ARGUMENTS)
        assert done.code == 0
        info = landscape.load(only(tiny)).info
        assert info.dtype == "float64"
        assert info.config["products"] == "float32"
        assert info.config["tol"] == 1e-6

    def test_change_nothing_where_the_matrix_is_built(self, measure, tiny):
        measure()
        assert measure("--products", "float32").code == 0
        only(tiny)

    def test_unreachable_tolerances_name_the_way_out(self, measure, tiny):
        done = measure(*self.ARGUMENTS, "--tol", "1e-13", "--strict")
        assert done.code == 4
        assert "use no --products or a larger --tol" in landscape.load(only(tiny)).info.warnings[-1]

    def test_need_float64(self, measure):
        done = measure(*self.ARGUMENTS, "--dtype", "float32")
        assert done.code == 2
        assert "--products float32 verifies in float64" in done.err


class TestStreams:
    def test_table_on_stdout_and_notices_on_stderr(self, measure, tiny):
        done = measure()
        assert done.code == 0
        assert "hessian eigenvalues" in done.out
        assert "26 parameters, 12 examples" in done.out
        assert "step 7" in done.out
        assert "(exact)" in done.out
        assert done.err.startswith(f"task {tiny.task}: {tiny.task} (sha256 ")
        assert len(done.err.splitlines()) == 1

    def test_quiet_keeps_the_table(self, measure):
        loud, quiet = measure(), measure("--quiet", "--overwrite")
        assert quiet.err == ""
        assert loud.out.splitlines()[3:5] == quiet.out.splitlines()[3:5]

    def test_json_is_one_document(self, measure, tiny):
        done = measure("--json")
        (result,) = done.document["results"]
        assert set(result) >= {"file", "checkpoint", "step", "status", "config", "values"}
        assert result["file"] == str(only(tiny))
        assert (result["checkpoint"], result["step"]) == (str(tiny.checkpoint), 7)
        assert (result["status"], result["warnings"]) == ("complete", [])
        assert result["config"]["operators"] == ["hessian"]
        assert len(result["values"]["hessian"]["eigenvalues"]) == 26
        assert done.document["errors"] == []
        assert done.document["command"] == "hessian"

    def test_json_stays_pure_when_the_task_prints(self, measure, tiny):
        task = tiny.write_task(
            "chatty.py",
            extra="print('import')",
            more="forward=lambda m, b: print('run') or m(b[0])",
        )
        done = measure("--json", task=task)
        assert done.values["n_parameters"] == 26
        assert "import" in done.err
        assert "run" in done.err

    def test_numbers_that_are_not_finite_are_null(self, measure):
        # One probe has no standard error.
        done = measure("--json", "--probes", "1", *LANCZOS)
        assert done.values["hessian"]["trace"]["stderr"] is None

    def test_stdout_is_given_back(self, measure):
        before = sys.stdout
        measure("--json")
        assert sys.stdout is before

    def test_a_reader_that_has_gone_does_not_end_the_run(self, tiny, draw):
        for step in (8, 9):
            tiny.write_checkpoint(f"step_{step}.safetensors", draw(seed=step))
        command = (
            f"set -o pipefail; {sys.executable} -m landscape_cli hessian 'step_*.safetensors' "
            "--task task.py -o out | true"
        )
        done = subprocess.run(
            ["bash", "-c", command], cwd=tiny.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "rror" not in done.stderr
        assert len(results(tiny)) == 3


class TestSecondRun:
    def test_does_nothing(self, measure, tiny):
        first = measure("--json")
        stamp = only(tiny).stat().st_mtime_ns
        second = measure("--json")
        assert second.code == 0
        assert only(tiny).stat().st_mtime_ns == stamp
        assert second.values == first.values
        assert first.document["results"][0]["new"] is True
        assert second.document["results"][0]["new"] is False
        assert "nothing to do" in second.err

    def test_overwrite_computes_again(self, measure, tiny):
        first = measure("--json")
        stamp = only(tiny).stat().st_mtime_ns
        second = measure("--json", "--overwrite")
        assert only(tiny).stat().st_mtime_ns > stamp
        assert second.values["hessian"] == first.values["hessian"]

    def test_overwrite_replaces_a_corrupt_file(self, measure, tiny):
        measure()
        only(tiny).write_bytes(b"not HDF5")
        assert measure("--overwrite").code == 0
        assert landscape.load(only(tiny)).info.n_parameters == 26

    def test_more_probes_continue_the_file(self, measure, tiny):
        measure("--probes", "2", *LANCZOS)
        few = landscape.load(only(tiny)).densities["hessian"]
        assert measure("--probes", "5", *LANCZOS).code == 0
        many = landscape.load(only(tiny))
        assert many.densities["hessian"].nodes.shape[0] == 5
        assert many.moments["hessian"].n_probes == 5
        np.testing.assert_array_equal(many.densities["hessian"].nodes[:2], few.nodes)
        np.testing.assert_allclose(many.densities["hessian"].weights[:2], few.weights, rtol=1e-15)

        fresh = measure("--probes", "5", "--overwrite", "--json", *LANCZOS).values["hessian"]
        assert fresh["trace"]["value"] == pytest.approx(
            many.moments["hessian"].trace.value, rel=1e-14
        )

    def test_fewer_probes_do_nothing(self, measure, tiny):
        measure("--probes", "5", *LANCZOS)
        stamp = only(tiny).stat().st_mtime_ns
        assert measure("--probes", "2", *LANCZOS).code == 0
        assert only(tiny).stat().st_mtime_ns == stamp

    def test_a_continued_file_loses_nothing(self, measure, tiny):
        measure("--probes", "3", "--save-vectors", *LANCZOS)
        measure("--probes", "4", *LANCZOS)
        assert landscape.load(only(tiny)).spectra["hessian"].eigenvectors.shape == (2, 26)
        measure("--probes", "4", *LANCZOS, "--overwrite")
        assert landscape.load(only(tiny)).spectra["hessian"].eigenvectors is None
        measure("--probes", "2", "--save-vectors", *LANCZOS)
        found = landscape.load(only(tiny))
        assert found.densities["hessian"].nodes.shape[0] == 4
        assert found.spectra["hessian"].eigenvectors.shape == (2, 26)

    def test_same_seed_same_numbers(self, measure):
        numbers = [
            measure("--json", "--overwrite", "--seed", seed, *LANCZOS).values["hessian"]
            for seed in (3, 3, 4)
        ]
        assert numbers[0] == numbers[1]
        assert numbers[0]["trace"] != numbers[2]["trace"]

    def test_global_random_state_is_untouched(self, measure):
        state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        measure(*LANCZOS)
        assert torch.equal(torch.get_rng_state(), state)
        assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


class TestKey:
    """The name of the result file changes with the estimates, and with nothing else."""

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--batch-size", "5"),
            ("--device", "cpu"),
            ("--graph-memory", "0"),
            ("--quiet",),
            ("--strict",),
            ("--probes", "4"),
            # All eigenvalues of a built matrix are known, whatever is asked for.
            ("--top", "3"),
            ("--steps", "7"),
        ],
        ids=" ".join,
    )
    def test_unaffected(self, measure, tiny, arguments):
        measure()
        assert measure(*arguments).code == 0
        only(tiny)

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--set", "unused=2"),
            ("--set", "activation=GELU"),
            ("--seed", "1"),
            ("--examples", "8"),
            ("--dtype", "float32"),
            ("--operator", "ggn"),
            ("--params", "*.weight"),
            ("--loss", "relabelled"),
            ("--tol", "1e-3"),
            ("--no-density",),
        ],
        ids=" ".join,
    )
    def test_affected(self, measure, tiny, arguments):
        measure()
        assert measure(*arguments).code == 0
        assert len(results(tiny)) == 2

    def test_affected_by_the_task_and_the_checkpoint(self, measure, tiny, draw):
        measure()
        tiny.task.write_text(tiny.task.read_text() + "\n# changed\n")
        measure()
        tiny.write_checkpoint(tiny.checkpoint.name, draw(seed=1))
        measure()
        assert len(results(tiny)) == 3

    def test_affected_by_the_data(self, measure, tiny):
        # The data come from elsewhere: the task's own source stays the same.
        numbers = tiny.folder / "numbers.txt"
        task = tiny.write_task(
            "reading.py",
            extra="from pathlib import Path",
            data=f"(INPUTS + float(Path({str(numbers)!r}).read_text()), LABELS)",
        )
        for text in ("1", "2"):
            numbers.write_text(text)
            assert measure(task=task).code == 0
        assert len(results(tiny)) == 2

    def test_batch_size_changes_results_only_by_rounding(self, measure):
        whole = measure("--json").values["hessian"]["eigenvalues"]
        parts = measure("--json", "--batch-size", "5", "--overwrite").values["hessian"]
        np.testing.assert_allclose(parts["eigenvalues"], whole, atol=1e-14)


class TestSubset:
    def test_sorted_indices_that_differ_by_the_data_s_seed_alone(self, measure, tiny):
        taken = []
        for seeds in ((), ("--seed", 1), ("--data-seed", 1)):
            file = measure("--json", "--examples", "6", *seeds).document["results"][0]
            found = landscape.load(file["file"])
            assert found.info.n_examples == 6
            assert (np.diff(found.indices) > 0).all()
            taken.append(found.indices.tolist())
        assert taken[0] == taken[1] != taken[2]
        assert len(list((tiny.folder / "out").glob("*.h5"))) == 3

    def test_more_than_there_are_is_said(self, measure):
        done = measure("--examples", "13")
        assert done.code == 0
        assert "--examples 13: there are 12, and all are taken" in done.err

    def test_no_indices_where_all_are_taken(self, measure, tiny):
        measure("--examples", "12")
        assert landscape.load(only(tiny)).indices is None


class TestSeveralCheckpoints:
    def test_quoted_glob_in_natural_order(self, measure, tiny, draw):
        for step in (100, 9, 20):
            tiny.write_checkpoint(f"runs/step_{step}.safetensors", draw(seed=step))
        done = measure("--json", checkpoints=[tiny.folder / "runs" / "*.safetensors"])
        assert [result["step"] for result in done.document["results"]] == [9, 20, 100]

    def test_one_bad_checkpoint_does_not_stop_the_others(self, measure, tiny, draw):
        for step in (1, 3):
            tiny.write_checkpoint(f"runs/step_{step}.safetensors", draw(seed=step))
        bad = draw(seed=2)
        bad["0.bias"][0] = float("nan")
        path = tiny.write_checkpoint("runs/step_2.safetensors", bad)
        done = measure("--json", checkpoints=[tiny.folder / "runs" / "*.safetensors"])
        assert done.code == 5
        assert [result["step"] for result in done.document["results"]] == [1, 3]
        first, last = done.document["errors"]
        assert (first["checkpoint"], first["exit_code"]) == (str(path), 4)
        assert "0.bias" in first["message"]
        assert (last["checkpoint"], last["exit_code"]) == (None, 5)
        assert last["message"] == "1 of 3 checkpoints failed"
        assert len(results(tiny)) == 2
        assert len(done.errors) == 2

    def test_one_corrupt_result_file_does_not_stop_the_others(self, measure, tiny, draw):
        pattern = [tiny.folder / "runs" / "*.safetensors"]
        for step in (1, 2):
            tiny.write_checkpoint(f"runs/step_{step}.safetensors", draw(seed=step))
        measure(checkpoints=pattern)
        for file in results(tiny):
            file.unlink() if "step_2" in file.name else file.write_bytes(b"?")
        done = measure("--json", checkpoints=pattern)
        assert done.code == 5
        assert done.document["results"][0]["step"] == 2

    def test_all_bad(self, measure, tiny, draw):
        for step in (1, 2):
            tiny.write_checkpoint(f"step_{step}.safetensors", {**draw(), "more": draw()["0.bias"]})
        pattern = [tiny.folder / "step_[12].safetensors"]
        done = measure("--json", checkpoints=pattern)
        assert done.code == 3
        assert [e["exit_code"] for e in done.document["errors"]] == [3, 3, 3]
        assert done.document["errors"][-1]["message"] == "all 2 checkpoints failed"

    def test_wrong_usage_is_said_once(self, measure, tiny, draw):
        tiny.write_checkpoint("step_8.safetensors", draw(seed=8))
        done = measure("--top", "99", checkpoints=[tiny.folder / "*.safetensors"])
        assert done.code == 2
        assert len(done.errors) == 1


class TestResultFileInTheWay:
    @pytest.mark.parametrize("kind", ["text", "empty", "truncated", "schema", "key"])
    def test_is_refused_and_kept(self, measure, tiny, kind):
        measure()
        file = only(tiny)
        if kind == "text":
            file.write_text("not HDF5")
        elif kind == "empty":
            file.write_bytes(b"")
        elif kind == "truncated":
            file.write_bytes(file.read_bytes()[:-1000])
        else:
            with h5py.File(file, "r+") as opened:
                opened.attrs[kind] = "landscape/0"
        before = file.read_bytes()
        plain, told = measure(), measure("--json")
        assert plain.code == told.code == 2
        (error,) = told.document["errors"]
        assert len(plain.errors) == len(told.errors) == 1
        assert error["checkpoint"] == str(tiny.checkpoint)
        assert file.name in error["message"]
        expected = {"schema": "schema", "key": "another configuration"}.get(kind, "not HDF5")
        assert expected in error["message"]
        assert file.read_bytes() == before


class TestResume:
    @pytest.fixture
    def stop_after(self, monkeypatch):
        """Fail in the given product, counting from now."""
        from landscape.operators import CurvatureOperator

        product = CurvatureOperator._matvec

        def install(count, error=None):
            def failing(self, vector):
                nonlocal count
                count -= 1
                if count < 0:
                    raise error or NotFiniteError("stopped by the test")
                return product(self, vector)

            monkeypatch.setattr(CurvatureOperator, "_matvec", failing)

        yield install
        monkeypatch.undo()

    @pytest.mark.parametrize("count", [1, 5, 27, 40, 52])
    def test_an_exception_keeps_finished_work(self, measure, tiny, stop_after, monkeypatch, count):
        whole = measure("--json", *LANCZOS)
        expected = landscape.load(only(tiny))
        only(tiny).unlink()

        with monkeypatch.context():
            stop_after(count)
            stopped = measure("--flush-seconds", "0", *LANCZOS)
            assert stopped.code == 4
            assert only(tiny).name.endswith(".h5.partial")
        monkeypatch.undo()
        again = measure("--json", *LANCZOS)
        assert "resuming" in again.err
        assert only(tiny).suffix == ".h5"
        found = landscape.load(only(tiny))
        assert again.values["hessian"] == whole.values["hessian"]
        assert again.values["n_matvecs"] == whole.values["n_matvecs"]
        for name in ("nodes", "weights", "density", "stderr"):
            np.testing.assert_array_equal(
                getattr(found.densities["hessian"], name),
                getattr(expected.densities["hessian"], name),
            )

    def test_a_bug_keeps_finished_work_too(self, measure, tiny, stop_after):
        stop_after(40, ZeroDivisionError("oops"))
        stopped = measure(*LANCZOS)
        assert stopped.code == 1
        assert len(stopped.errors) == 1
        assert "bug in landscape: ZeroDivisionError: oops" in stopped.errors[0]
        assert "Traceback" not in stopped.err
        assert only(tiny).name.endswith(".h5.partial")

    def test_a_damaged_partial_file_costs_only_time(self, measure, tiny, stop_after, monkeypatch):
        with monkeypatch.context():
            stop_after(40)
            measure(*LANCZOS)
        monkeypatch.undo()
        only(tiny).write_bytes(only(tiny).read_bytes()[:-3000])
        again = measure(*LANCZOS)
        assert again.code == 0
        assert "cannot be read; what it held is computed again" in again.err
        assert only(tiny).suffix == ".h5"

    def test_a_task_that_exits_does_not_choose_the_exit_code(self, measure, tiny):
        task = tiny.write_task("exits.py", more="forward=lambda m, b: exit(0)")
        done = measure(task=task)
        assert done.code == 3
        assert "sys.exit(0)" in done.errors[0]


class TestStrict:
    ARGUMENTS = ("--method", "lanczos", "--dtype", "float32", "--tol", "1e-15", "--no-density")

    def test_not_converged_is_stored_and_exits_with_4(self, measure, tiny):
        done = measure("--strict", "--json", *self.ARGUMENTS)
        assert done.code == 4
        (result,) = done.document["results"]
        assert "not converged" in result["warnings"][0]
        (error,) = done.document["errors"]
        assert "--strict" in error["message"]
        assert not landscape.load(only(tiny)).spectra["hessian"].converged.all()

    def test_without_strict_it_is_a_warning(self, measure):
        done = measure(*self.ARGUMENTS)
        assert done.code == 0
        assert "warning:" in done.err
        assert "not converged" in done.out

    def test_also_when_there_is_nothing_to_do(self, measure):
        measure(*self.ARGUMENTS)
        assert measure("--strict", *self.ARGUMENTS).code == 4


class TestConfig:
    def config(self, tiny, text):
        path = tiny.folder / "settings.toml"
        path.write_text(text)
        return path

    def test_the_command_line_wins_over_the_section_over_the_top(self, measure, tiny):
        text = "seed = 1\ntop = 4\ntol = 1e-5\n[hessian]\ntop = 5\ntol = 1e-6\n[check]\nseed = 9\n"
        done = measure("--json", "--config", self.config(tiny, text), "--tol", "1e-7")
        found = done.document["results"][0]["config"]
        assert (found["seed"], found["top"], found["tol"]) == (1, 5, 1e-7)

    def test_it_can_name_the_task_and_its_arguments(self, cli, tiny):
        text = (
            f"task = {str(tiny.task)!r}\nout = {str(tiny.folder / 'out')!r}\n"
            "operator = ['ggn']\nparams = '*.weight'\ndensity = false\n"
            "set = {unused = 3, activation = 'GELU'}\njson = true\n"
        )
        done = cli("hessian", tiny.checkpoint, "--config", self.config(tiny, text))
        assert done.code == 0, done.err
        found = done.document["results"][0]["config"]
        assert found["operators"] == ["ggn"]
        assert found["params"] == ["*.weight"]
        assert found["density"] is False
        assert found["set"] == {"unused": 3, "activation": "GELU"}

    def test_it_gives_the_same_key(self, measure, tiny):
        measure("--top", "3")
        measure("--config", self.config(tiny, "top = 3"))
        only(tiny)

    def test_it_is_never_found_by_itself(self, measure, tiny, monkeypatch):
        for name in ("landscape.toml", "settings.toml", "config.toml"):
            (tiny.folder / name).write_text("top = 1")
        monkeypatch.chdir(tiny.folder)
        assert measure("--json").document["results"][0]["config"]["top"] == 10


class TestDebug:
    def test_shows_the_traceback_of_a_foreseen_error(self, measure):
        done = measure("--debug", "--dtype", "float1")
        assert done.code == 2
        assert "Traceback" in done.err
        assert len(done.errors) == 1

    def test_of_a_task_that_fails(self, measure, tiny):
        task = tiny.write_task("fails.py", extra="1 / 0")
        done = measure("--debug", task=task)
        assert "ZeroDivisionError" in done.err
        assert "fails.py" in done.err


class TestPlot:
    @pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
    def test_figure_beside_the_result(self, measure, tiny, ending):
        figure = tiny.folder / "figures" / f"[bold]spectrum.{ending}"
        done = measure("--plot", figure)
        assert done.code == 0
        assert figure.stat().st_size > 1000
        assert f"figure: {figure}" in done.err

    def test_a_figure_that_cannot_be_written_loses_no_result(self, measure, tiny):
        done = measure("--json", "--plot", tiny.checkpoint / "figure.png")
        assert done.code == 2
        assert "cannot write" in done.document["errors"][0]["message"]
        only(tiny)


SLOW = """
import time


def forward(model, batch):
    time.sleep(0.01)
    return model(batch[0])
"""


class TestProcesses:
    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
    )
    def test_a_signal_saves_the_state(self, tiny, measure, number, code):
        task = tiny.write_task("slow.py", extra=SLOW, more="forward=forward")
        arguments = ("--graph-memory", "0", "--flush-seconds", "0", *LANCZOS, "--probes", "10")
        process = subprocess.Popen(
            [
                *HESSIAN,
                tiny.checkpoint,
                "--task",
                task,
                "-o",
                tiny.folder / "out",
                "--json",
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and not list(tiny.folder.glob("out/*.partial")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        (error,) = json.loads(out)["errors"]
        assert error["exit_code"] == code
        assert "saved" in error["message"]
        assert "Traceback" not in err
        assert err.count("error:") == 1
        assert only(tiny).name.endswith(".h5.partial")
        with h5py.File(only(tiny)) as file:
            assert len(file["units"]) > 0
        again = measure("--json", *arguments, task=task)
        assert "resuming" in again.err
        assert again.code == 0
        assert only(tiny).suffix == ".h5"

    def test_two_at_once_do_not_corrupt_each_other(self, tiny):
        command = [*HESSIAN, tiny.checkpoint, "--task", tiny.task, "-o", tiny.folder / "out"]
        command += ["--flush-seconds", "0", *LANCZOS, "--probes", "9", "--json"]
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        ended = [(*process.communicate(timeout=100), process.returncode) for process in running]
        # The later one finds the lock or, where it is late enough, the result.
        for _, err, code in ended:
            assert code == 0 or (code == 2 and "is being worked on by process" in err), err
        assert 0 in [code for *_, code in ended]
        again = subprocess.run(command, capture_output=True, text=True, check=True)
        found = [json.loads(out) for out, _, code in ended if code == 0] + [
            json.loads(again.stdout)
        ]
        first, *others = (d["results"][0]["values"]["hessian"] for d in found)
        assert all(other == first for other in others)
        assert landscape.load(only(tiny)).moments["hessian"].n_probes == 9

    def test_the_checkpoint_s_name_need_not_be_utf8(self, tiny, draw):
        name = os.fsencode(tiny.folder) + b"/b\xffd.pt"
        torch.save(draw(), os.fsdecode(name))
        done = subprocess.run(
            [*HESSIAN, name, "--task", tiny.task, "-o", tiny.folder / "out", "--json"],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["results"][0]["step"] is None
