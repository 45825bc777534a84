"""``landscape information`` from the command line: numbers, files, figures, other results."""

from __future__ import annotations

import pytest

import landscape


@pytest.fixture
def information(cli, tiny):
    """``landscape information`` of the network of 26 parameters, with --json."""

    def command(*arguments, checkpoints=(), json=True):
        return cli(
            *("information", *(checkpoints or [tiny.checkpoint]), "--task", tiny.task),
            *("-o", tiny.folder / "out"),
            *(("--json",) if json else ()),
            *arguments,
        )

    return command


@pytest.fixture
def series(tiny, draw):
    """Four checkpoints of different weights."""
    names = [f"run_step_{step}.safetensors" for step in range(4)]
    return [tiny.write_checkpoint(name, draw(seed)) for seed, name in enumerate(names, 20)]


def files(tiny):
    return sorted((tiny.folder / "out").iterdir())


def test_one_network(information, tiny, cli):
    done = information("--plot", tiny.folder / "f.png")
    assert done.code == 0, done.err
    values = done.values
    gradients, split = values["gradients"], values["split"]
    assert gradients["ranks"][0]["rank"] <= 12 == gradients["distinct_examples"]
    assert [row["layer"] for row in gradients["ranks"]] == ["", "0", "2"]
    assert [row["layer"] for row in values["activations"]] == ["0", "2"]
    assert split["exact"]
    assert split["norms"][0]["ratio"] > 0
    assert values["self_test"] is None
    assert (tiny.folder / "f.png").stat().st_size > 1000
    (file,) = files(tiny)
    assert file.name.startswith("step_7.information.")
    stored = landscape.load(file)
    assert stored.gradients.ranks[0].entropy == gradients["ranks"][0]["entropy"]
    again = information()
    assert again.document["results"][0]["new"] is False
    assert again.values == values
    shown = cli("show", file)
    assert shown.code == 0, shown.err
    assert "H = GGN + R" in shown.out
    assert "12 distinct" in shown.out
    assert cli("plot", file, "-o", tiny.folder / "g.svg").code == 0
    refused = cli("collect", file, "-o", tiny.folder / "series.h5")
    assert refused.code == 2
    assert "not collected" in refused.err


def test_behaviour_tests_itself(information):
    done = information("--loss", "behaviour", json=False)
    assert done.code == 0, done.err
    assert "self-test" in done.out
    values = information("--loss", "behaviour").values
    assert values["self_test"] < 1e-13
    assert values["split"]["norms"][0]["negative"] == 0


def test_more_probes_continue(information, tiny):
    first = information("--method", "probes", "--probes", 3, "--steps", 4)
    assert first.code == 0, first.err
    more = information("--method", "probes", "--probes", 6, "--steps", 4)
    assert len(files(tiny)) == 1
    assert more.document["results"][0]["new"] is True
    assert more.values["split"]["n_probes"] == 6
    fewer = information("--method", "probes", "--probes", 3, "--steps", 4)
    assert fewer.document["results"][0]["new"] is False
    fresh = information("--method", "probes", "--probes", 6, "--steps", 4, "--overwrite")
    assert fresh.values == more.values
    text = information("--method", "probes", "--probes", 6, "--steps", 4, json=False).out
    assert "at least" in text
    assert "jackknife" in text


def test_over_a_series_against_other_results(information, tiny, cli, series):
    out = tiny.folder / "out"
    for command in ("flat", "volume", "hessian"):
        quick = ("--method", "quadratic") if command == "volume" else ()
        done = cli(command, *series, "--task", tiny.task, "-o", out, "--quiet", *quick)
        assert done.code == 0, done.err
    text = information(checkpoints=series[:2], json=False).out
    assert "Over the checkpoints" in text
    patterns = [f"{out}/*.{command}.*.h5" for command in ("flat", "volume", "hessian")]
    against = [word for pattern in patterns for word in ("--against", pattern)]
    done = information(*against, "--plot", tiny.folder / "s.png", checkpoints=series)
    assert done.code == 0, done.err
    *results, joined = done.document["results"]
    assert [result["step"] for result in results] == [0, 1, 2, 3] == joined["values"]["step"]
    columns = joined["values"]["series"]
    assert {"N_eff at 0.01", "log V (quadratic) at 0.01", "trace of the hessian"} <= set(columns)
    for row, result in enumerate(results):
        entropy = result["values"]["gradients"]["ranks"][0]["entropy"]
        assert columns["gradients: entropy"][row] == entropy
    volumes = {
        landscape.load(path).info.step: landscape.load(path).estimates["quadratic"].log_volume[0]
        for path in out.glob("*.volume.*.h5")
    }
    assert columns["log V (quadratic) at 0.01"] == [volumes[step] for step in range(4)]
    found = {(e["information"], e["other"]): e for e in joined["values"]["correlations"]}
    entry = found["gradients: entropy", "N_eff at 0.01"]
    assert entry["n"] == 4
    assert -1 <= entry["lower"] <= entry["rho"] <= entry["upper"] <= 1
    assert (tiny.folder / "s.png").stat().st_size > 1000
    text = information(*against, checkpoints=series, json=False).out
    assert "not independent" in text

    own = information("--against", f"{out}/*.information.*.h5", checkpoints=series)
    assert own.code == 2
    assert "a result of landscape information; expected one of volume" in own.err
    others = [tiny.checkpoint, *series[:3]]
    few = information("--against", patterns[0], checkpoints=others)
    assert few.code == 2
    assert "3 of 4 checkpoints are among those" in few.err


def test_too_many_examples_for_the_memory(information, monkeypatch, tiny):
    monkeypatch.setattr("landscape.information.gradients.total_memory", lambda device: 4096)
    done = information()
    assert done.code == 2
    assert "more than a quarter of the memory" in done.err
    assert "--examples" in done.err
    assert not files(tiny)


def test_without_labels(information, tiny):
    task = tiny.write_task("mse.py", data="(INPUTS, TARGETS)", criterion="'mse'")
    done = information("--task", task, "--plot", tiny.folder / "f.pdf")
    assert done.code == 0, done.err
    assert landscape.load(files(tiny)[0]).gradients.kernel_label.tolist() == [-1] * 12


def test_several_processes_are_refused(information, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29511")
    monkeypatch.setenv("LOCAL_RANK", "0")
    done = information()
    assert done.code == 2
    assert "works in one process" in done.err
