"""``landscape show``, ``plot`` and ``collect`` with annealed log-volumes."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import h5py
import numpy as np
import pytest
from annealings import SYMMETRIES, anneal_estimate, annealed_result, truth
from volumes import CUTOFFS, volume_result

from landscape.series_store import load_series
from landscape.store import load, save

CONTROL = "\x1b]0;title\x07\x1b[2J\x1b[31m"
MARKUP = "[red]red[/red] [link=http://x]x[/link] [/nothing]"


@pytest.fixture
def shown(cli, tmp_path):
    """What ``landscape show`` prints of a result, with single spaces."""

    def command(result) -> str:
        save(tmp_path / "a.h5", result)
        done = cli("show", tmp_path / "a.h5")
        assert (done.code, done.err) == (0, "")
        return re.sub(r"[ │┃]+", " ", done.out)

    return command


@pytest.fixture
def values(cli, tmp_path):
    """What ``landscape show --json`` prints of a result's annealed value."""

    def command(result) -> dict:
        save(tmp_path / "a.h5", result)
        return cli("show", tmp_path / "a.h5", "--json").values

    return command


class TestTables:
    def test_converged(self, shown):
        out = shown(annealed_result())
        for text in (
            "anneal ladder from the prior, 8 islands of 8",
            "0.01 anneal -42.792 -61.7359 -43.492 to -42.092 5.2/8",
            "judgement converged: both starts agree at R = ∞",
            "agreement both starts agree up to R = ∞, no limit",
            "islands 5.2 to 7.5 effective of 8",
            "mixing R-hat 1, ESS 1432 (excess loss); R-hat 1, ESS 1432",
            "(distance), of 1024 draws at the end",
            "gradients 123456 of the whole data set; 0.25 ms each, many chains together; 1 ms for "
            "the model alone (0.25 of it)",
            "symmetries 3.8712 nats of copies in the value: permutations of 3 units of [0], "
            "signs of [0]",
            "above (Markov)",
            "valid only at equilibrium",
            "anharmonicity",
            "0.01 -45.892 -39.592 -13.5817 ± 0.3",
            "1 -27.4753 -4.37532 ± 0.3",
        ):
            assert text in out
        for text in ("NOT", "failed", "lower bound"):
            assert text not in out
        assert out.index("log V, cutoff") < out.index("judgement") < out.index("Terms of log V")

    def test_not_converged(self, shown):
        out = shown(annealed_result(converged=False))
        for text in (
            "judgement NOT converged: both starts agree up to R = 0.4, not at R = ∞",
            "agreement both starts agree up to R = 0.4 prior standard deviations (rms)",
            "Checks that failed",
            "log V of both starts differ by 3.04 at most 0.9 a larger --budget, or a smaller",
            "log V within R in nats, and distance",
            "0.4 -7.14286 ± 0.3 0.4 -7.24286 ± 0.3 0.4 agree",
            "∞ -3.84615 ± 0.3 0.9 -6.84615 ± 0.3 0.9 log V differs by 3, not 1.1",
            "0.01 -45.892 -39.592",
            "0.1 -36.6821",
            "-45.892 to ∞ 5.2/8 lower bound",
        ):
            assert text in out
        # A check that passed is in the JSON document only; a difference is of nothing believed.
        assert "lowest acceptance" not in out
        assert "anharmonicity" not in out

    def test_a_limit_from_below(self, shown):
        result = annealed_result(converged=False)
        (_, acceptance) = result.annealing.checks
        failed = dataclasses.replace(acceptance, value=0.2, passed=False)
        record = dataclasses.replace(result.annealing, checks=(failed,))
        out = shown(dataclasses.replace(result, annealing=record))
        assert "ladder: lowest acceptance 0.2 at least 0.5 another --seed" in out

    def test_one_start(self, shown):
        out = shown(annealed_result(converged=False, outward=False, methods=(), table=False))
        assert "NOT converged: one start only, nothing to compare it with at R = ∞" in out
        assert "agreement" not in out

    @pytest.mark.parametrize(
        ("agreed", "text"),
        [
            (math.nan, "NOT converged: both starts agree at no radius up to R = ∞"),
            (math.inf, "NOT converged: both starts agree at R = ∞, but a check failed"),
        ],
    )
    def test_how_far_they_agree(self, shown, agreed, text):
        out = shown(annealed_result(converged=False, record={"agreed_radius": agreed}))
        assert text in out

    def test_a_local_volume(self, shown):
        """Copies may lie beyond R, and the quadratic model knows no R."""
        out = shown(annealed_result(radius=0.4))
        assert "converged: both starts agree at R = 0.4" in out
        assert "symmetries" not in out
        assert "anharmonicity" not in out

    @pytest.mark.parametrize(
        ("record", "texts", "absent"),
        [
            ({"symmetries": (), "log_orders": np.zeros(0)}, ["symmetries no discrete one"], []),
            ({"gradient_seconds": math.nan}, ["1 ms for the model alone"], ["chains", "of it"]),
            ({"bare_seconds": math.nan}, ["0.25 ms each"], ["alone"]),
            ({"bare_seconds": 0.0}, ["0 ms for the model alone"], ["of it"]),
            ({"gradient_seconds": 2.5}, ["2.5 s each"], []),
            ({"reverse": np.full(3, np.inf)}, ["above (Markov)"], ["equilibrium"]),
            ({"checks": ()}, ["converged"], ["failed"]),
        ],
        ids=str,
    )
    def test_what_is_unknown_is_left_out(self, shown, record, texts, absent):
        out = shown(annealed_result(record=record))
        assert all(text in out for text in texts)
        assert not any(text in out for text in absent)

    def test_unknown_effective_islands(self, shown):
        result = annealed_result()
        found = dataclasses.replace(result.estimates["anneal"], ess=np.full(3, np.nan))
        estimates = {**result.estimates, "anneal": found}
        assert "islands 8\n" in shown(dataclasses.replace(result, estimates=estimates)).replace(
            " \n", "\n"
        )

    def test_bounds_among_the_cutoffs_have_no_anharmonicity(self, shown):
        result = annealed_result()
        found = dataclasses.replace(
            anneal_estimate(CUTOFFS), lower_bound=np.array([True, False, False])
        )
        result = dataclasses.replace(result, estimates={**result.estimates, "anneal": found})
        out = shown(result)
        assert "0.01 -45.892 -39.592 \n" in out
        assert "-8.97689 ± 0.3" in out

    def test_without_a_record(self, shown):
        out = shown(dataclasses.replace(annealed_result(), annealing=None))
        assert "0.01 anneal" in out
        assert "judgement" not in out

    def test_text_from_the_file_is_escaped(self, cli, tmp_path):
        path = tmp_path / "a.h5"
        save(path, annealed_result(converged=False))
        with h5py.File(path, "r+") as file:
            for place in ("checks/name", "checks/remedy", "symmetries/name"):
                file[f"anneal/{place}"][0] = MARKUP + CONTROL
            file["volume/anneal"].attrs["path"] = MARKUP + CONTROL
        done = cli("show", path)
        assert done.code == 0, done.err
        assert not {"\x1b", "\x07"} & set(done.out + done.err)
        assert done.out.count("[red]red[/red]") == 4
        assert cli("show", path, "--json").code == 0
        assert cli("plot", path, "-o", tmp_path / "a.svg").code == 0


class TestJson:
    def test_entry(self, values):
        document = values(annealed_result(converged=False))
        found = document["anneal"]
        np.testing.assert_allclose(found["log_volume"], truth(np.array(CUTOFFS)))
        assert found["lower_bound"] == [True] * 3
        assert found["converged"] is False
        assert found["radius"] is None
        assert found["agreed_radius"] == 0.4
        np.testing.assert_allclose(found["markov"], truth(np.array(CUTOFFS)) - 3.1)
        assert found["reverse"][1:] == [None, None]
        assert found["checks"][0] == {
            "name": "log V of both starts differ by",
            "value": 3.04,
            "limit": 0.9,
            "at_least": False,
            "passed": False,
            "remedy": "a larger --budget, or a smaller --tether",
        }
        assert found["checks"][1]["passed"] is True
        assert list(found["mixing"]) == ["excess loss", "distance"]
        assert found["mixing"]["distance"]["draws"] == 1024
        assert 500 < found["mixing"]["distance"]["ess"] < 1500
        curve = found["curve"]
        assert curve["radius"] == [0.1, 0.2, 0.4, 0.8, None]
        assert curve["agrees"] == [True, True, True, False, False]
        assert {len(part) for part in curve.values()} == {5}
        assert [(s["name"], s["log_order"]) for s in found["symmetries"]] == list(SYMMETRIES)
        assert found["anharmonicity"] is None
        assert found["n_gradients"] == 123456
        assert found["gradient_seconds"] == 0.00025
        assert found["bare_seconds"] == 0.001
        assert document["quadratic"]["log_volume"]

    def test_anharmonicity(self, values):
        result = annealed_result()
        found = values(result)["anneal"]["anharmonicity"]
        expected = result.estimates["anneal"].log_volume - result.estimates["quadratic"].log_volume
        np.testing.assert_allclose(found["value"], expected)
        np.testing.assert_allclose(found["stderr"], 0.3)

    def test_everything_that_is_not_finite_is_null(self, values):
        record = {
            "agreed_radius": math.nan,
            "markov": np.full(3, -np.inf),
            "gradient_seconds": math.nan,
            "bare_seconds": math.inf,
        }
        found = values(annealed_result(record=record))["anneal"]
        assert found["markov"] == [None] * 3
        assert [found[n] for n in ("agreed_radius", "gradient_seconds", "bare_seconds")] == [
            None
        ] * 3

    def test_other_results_have_no_entry(self, values):
        assert "anneal" not in values(volume_result())


class TestAnharmonicity:
    @pytest.mark.parametrize(
        "options",
        [{"converged": False}, {"radius": 0.4}, {"methods": ("radial",)}],
        ids=str,
    )
    def test_of_what_is_not_believed_or_not_there(self, options):
        assert annealed_result(**options).anharmonicity() is None

    def test_without_a_record(self):
        assert dataclasses.replace(annealed_result(), annealing=None).anharmonicity() is None
        assert volume_result().anharmonicity() is None

    def test_errors_of_both_add_up(self):
        result = annealed_result()
        estimates = dict(result.estimates)
        stderr = np.array([0.4, np.nan, 0.0])
        estimates["quadratic"] = dataclasses.replace(estimates["quadratic"], stderr=stderr)
        _, error = dataclasses.replace(result, estimates=estimates).anharmonicity()
        np.testing.assert_allclose(error, [0.5, np.nan, 0.3])

    def test_nothing_less_nothing(self):
        result = annealed_result()
        nothing = {"log_volume": np.full(3, -np.inf)}
        estimates = {n: dataclasses.replace(e, **nothing) for n, e in result.estimates.items()}
        value, _ = dataclasses.replace(result, estimates=estimates).anharmonicity()
        assert np.isnan(value).all()


def test_damage_names_the_file(cli, tmp_path):
    path = tmp_path / "a.h5"
    save(path, annealed_result())
    with h5py.File(path, "r+") as file:
        del file["anneal/ladder/loss"]
    for command in ("show", "plot", "collect"):
        done = cli(command, path)
        assert done.code == 2
        assert str(path) in done.errors[0]


def test_a_series(cli, tmp_path):
    for step, converged in ((0, True), (7, False)):
        save(tmp_path / f"{step}.h5", annealed_result(step, converged=converged))
    # --method auto leaves it out where it would take long.
    save(tmp_path / "30.h5", volume_result(30, methods=("quadratic",)))
    series = tmp_path / "series.h5"
    done = cli("collect", *(tmp_path / f"{step}.h5" for step in (0, 7, 30)), "-o", series)
    assert done.code == 0, done.err
    assert "warning: --method anneal differs between results" in done.err
    out = re.sub(r"[ │┃]+", " ", done.out)
    assert " 0 -29.2103 -42.792 ± 0.3 " in out
    bound = annealed_result(7, converged=False).estimates["anneal"].lower[0]
    assert f" 7 -29.2103 ≥ {bound:.6g} " in out
    assert "≥ lower bound only" in out
    method = load_series(series).methods["anneal"]
    assert method.lower_bound[:, 0].tolist() == [False, True, False]
    assert np.isnan(method.log_volume[2]).all()
    assert method.n_samples[:, 0].tolist() == [8, 8, 0]
    found = cli("show", series, "--json").values["anneal"]
    assert found["log_volume"][2] == [None] * 3
    assert found["upper"][1] == [None] * 3
    assert cli("plot", series, "-o", tmp_path / "s.png").code == 0
    assert cli("plot", tmp_path / "0.h5", tmp_path / "7.h5", "-o", tmp_path / "t.png").code == 0


def test_merged_shards(cli, tmp_path):
    """Only rays are shared out; every shard that anneals finds the same."""
    for i in (1, 2):
        shard = {"shard": [i, 2], "samples": 8}
        both = {"methods": ("quadratic", "radial"), "index": np.arange(i - 1, 8, 2)}
        whole = annealed_result(config=shard, **both)
        save(tmp_path / f"{i}.h5", whole)
        save(tmp_path / f"lacking-{i}.h5", volume_result(config=shard, **both))
    for number, files in enumerate((("1", "2"), ("1", "lacking-2"), ("lacking-1", "2"))):
        out = tmp_path / f"merged-{number}.h5"
        done = cli("collect", "--merge", *(tmp_path / f"{f}.h5" for f in files), "-o", out)
        assert done.code == 0, done.err
        merged = load(out)
        assert merged.rays.index.tolist() == list(range(8))
        assert set(merged.estimates) == {"quadratic", "radial", "anneal"}
        assert merged.annealing.converged


def test_plot_says_what_it_draws(cli, tmp_path):
    save(tmp_path / "a.h5", annealed_result(converged=False))
    done = cli("plot", tmp_path / "a.h5", "-o", tmp_path / "a.png", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["results"][0]["file"] == str(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
