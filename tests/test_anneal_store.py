"""What ``anneal`` adds to a result file: it comes back as it was, or is refused."""

from __future__ import annotations

import dataclasses
import math

import h5py
import numpy as np
import pytest
import xarray
from annealings import annealed_result, islands

from landscape.errors import ResultFileError
from landscape.store import load, save
from landscape.volume.islands import Islands, volumes


def assert_same(one: object, two: object, where: str = "") -> None:
    """Equal bit for bit, types included."""
    assert type(one) is type(two), where
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            name = field.name
            assert_same(getattr(one, name), getattr(two, name), f"{where}.{name}")
    elif isinstance(one, np.ndarray):
        left, right = ((a.dtype, a.shape, a.tobytes()) for a in (one, two))
        assert left == right, where
    elif isinstance(one, tuple):
        assert len(one) == len(two), where
        for a, b in zip(one, two, strict=True):
            assert_same(a, b, where)
    elif isinstance(one, float):
        assert np.float64(one).tobytes() == np.float64(two).tobytes(), where
    else:
        assert one == two, where


@pytest.fixture(scope="module")
def result():
    return annealed_result()


class TestRoundTrip:
    def test_every_field(self, file, result):
        back = load(file)
        assert_same(back.annealing, result.annealing)
        assert list(back.estimates) == ["quadratic", "anneal"]
        assert_same(back.estimates["anneal"], result.estimates["anneal"])

    @pytest.mark.parametrize(
        "options",
        [
            {"converged": False},
            {"converged": False, "outward": False, "methods": (), "table": False},
            {"radius": 0.4},
            {"cutoffs": (0.01,)},
            {"cutoffs": (0.1, 1.0, 0.01)},
            {"methods": ("quadratic", "radial")},
            {"record": {"symmetries": (), "log_orders": np.zeros(0)}},
            {"record": {"checks": ()}},
            {"record": {"agreed_radius": math.nan, "gradient_seconds": math.nan}},
            {"record": {"symmetries": ("a [b] é\udcff", "\x1b[31m"), "n_gradients": 2**40}},
            {"record": {"reverse_partition": math.inf, "reverse": np.full(3, np.inf)}},
        ],
        ids=lambda o: ",".join(o),
    )
    def test_whatever_there_is(self, options, tmp_path):
        result = annealed_result(**options)
        save(tmp_path / "a.h5", result)
        record = result.annealing
        # What is no UTF-8 is escaped, as all text in result files.
        names = tuple(n.encode(errors="backslashreplace").decode() for n in record.symmetries)
        expected = dataclasses.replace(record, symmetries=names)
        assert_same(load(tmp_path / "a.h5").annealing, expected)

    def test_a_path_without_marks(self, tmp_path):
        bare = islands(np.array([1.0]))
        empty = {name: getattr(bare, name)[:0] for name in ("marks", "log_scale")}
        empty |= {name: np.zeros((0, 0, 8, 8)) for name in ("draw_loss", "draw_distance")}
        bare = dataclasses.replace(bare, **empty)
        result = annealed_result(record={"outward": bare})
        save(tmp_path / "a.h5", result)
        assert_same(load(tmp_path / "a.h5").annealing.outward, bare)

    def test_losses_that_are_not_finite(self, tmp_path):
        result = annealed_result()
        ladder = result.annealing.ladder
        loss = np.array(ladder.loss)
        loss[0], loss[1, 3] = np.inf, np.nan
        draws = np.array(ladder.draw_loss)
        draws[0, :, 2] = np.inf
        ladder = dataclasses.replace(ladder, loss=loss, draw_loss=draws)
        result = annealed_result(record={"ladder": ladder})
        save(tmp_path / "a.h5", result)
        assert_same(load(tmp_path / "a.h5").annealing.ladder, ladder)

    def test_numbers_of_numpy(self, tmp_path):
        """A run counts with whatever it has at hand."""
        given = {"n_gradients": np.int64(7), "converged": np.bool_(True), "radius": np.float64(2)}
        save(tmp_path / "a.h5", annealed_result(record=given))
        back = load(tmp_path / "a.h5").annealing
        assert (back.n_gradients, back.converged, back.radius) == (7, True, 2.0)
        assert type(back.converged) is bool

    def test_volumes_follow_from_the_file(self, file, result):
        annealing, estimate = load(file).annealing, result.estimates["anneal"]
        for mark, cutoff, expected in zip(
            annealing.marks, estimate.cutoff, estimate.log_volume, strict=True
        ):
            found = volumes(annealing.ladder, int(mark), float(cutoff))
            assert found.mean() == pytest.approx(expected, abs=0.5)

    def test_xarray_opens_it(self, file, result):
        with xarray.open_datatree(file, engine="h5netcdf") as tree:
            curve = tree["anneal/curve"]
            assert curve["ladder"].dims == ("radius",)
            assert curve["radius"].values[-1] == np.inf
            assert curve["agrees"].dtype == bool
            assert curve["outward"].sel(radius=0.2).item() == result.annealing.curve.outward[1]
            ladder = tree["anneal/ladder"]
            assert ladder["loss"].dims == ("level", "island")
            assert ladder["draw_loss"].dims == ("mark", "draw", "island", "particle")
            assert ladder["marks"].dims == ("mark",)
            assert tree["anneal/outward"]["beta"].sizes["level"] != ladder.sizes["level"]
            bounds = tree["anneal/bounds"]
            assert bounds["markov"].sel(cutoff=0.1).item() == result.annealing.markov[1]
            checks = tree["anneal/checks"]
            assert checks["remedy"].values[1] == "another --seed"
            assert checks["passed"].dtype == bool
            assert tree["anneal/symmetries"]["name"].dims == ("symmetry",)
            assert tree["anneal"].attrs["converged"] == 1
            assert tree["anneal"].attrs["n_gradients"] == 123456

    def test_a_result_without_it(self, tmp_path):
        result = dataclasses.replace(annealed_result(), annealing=None)
        save(tmp_path / "a.h5", result)
        back = load(tmp_path / "a.h5")
        assert back.annealing is None
        assert "anneal" in back.estimates


ATTRIBUTES = (
    "radius",
    "converged",
    "agreed_radius",
    "n_gradients",
    "gradient_seconds",
    "bare_seconds",
    "reverse_partition",
    "ladder_levels",
)
ARRAYS = (
    "curve/radius",
    "curve/outward_upper",
    "curve/agrees",
    "bounds/cutoff",
    "bounds/marks",
    "bounds/markov",
    "ladder/beta",
    "ladder/loss",
    "ladder/divergent",
    "ladder/marks",
    "ladder/draw_loss",
    "outward/draw_distance",
    "symmetries/log_orders",
    "symmetries/name",
    "checks/value",
    "checks/passed",
    "checks/name",
    "checks/remedy",
)


class TestUntrusted:
    def refuse(self, file, change, *words):
        with h5py.File(file, "r+") as opened:
            change(opened["anneal"])
        with pytest.raises(ResultFileError) as caught:
            load(file)
        assert caught.value.exit_code == 2
        for word in (str(file), *words):
            assert word in str(caught.value)

    @pytest.mark.parametrize("name", ATTRIBUTES)
    @pytest.mark.parametrize("value", [None, "x", np.arange(3)], ids=str)
    def test_attributes(self, file, name, value):
        def change(node):
            del node.attrs[name]
            if value is not None:
                node.attrs[name] = value

        self.refuse(file, change)

    @pytest.mark.parametrize("name", ["n_gradients", "n_resampled"])
    def test_attributes_of_islands(self, file, name):
        self.refuse(file, lambda node: node["ladder"].attrs.__delitem__(name), name)

    @pytest.mark.parametrize("value", [2, -1, 0.5, np.nan])
    def test_a_flag_is_one_or_none(self, file, value):
        self.refuse(file, lambda node: node.attrs.__setitem__("converged", value), "neither")

    @pytest.mark.parametrize("place", ARRAYS)
    @pytest.mark.parametrize("kind", ["missing", "group", "scalar", "shape", "longer", "type"])
    def test_arrays(self, file, place, kind):
        def change(node):
            old = node[place]
            texts = h5py.check_string_dtype(old.dtype) is not None
            shape, values = list(old.shape), old[()]
            shape[-1] += 1
            del node[place]
            if kind == "group":
                node.create_group(place)
            elif kind == "type":
                node[place] = np.zeros(old.shape) if texts else ["x"] * max(old.shape[0], 1)
            elif kind == "scalar":
                node[place] = values.flat[0]
            elif kind == "shape":
                node[place] = np.zeros((2, 2, 2, 2, 2))
            elif kind == "longer":
                node[place] = ["x"] * shape[0] if texts else np.zeros(shape, dtype=values.dtype)

        self.refuse(file, change)

    @pytest.mark.parametrize(
        ("place", "values"),
        [
            ("curve/radius", np.array([1, 2, 3, 4, 5])),
            ("curve/agrees", np.zeros(5)),
            ("ladder/divergent", None),
            ("bounds/marks", np.zeros(3)),
            ("checks/at_least", np.zeros(2, dtype=np.int8)),
            ("symmetries/log_orders", np.zeros(2, dtype=bool)),
        ],
        ids=str,
    )
    def test_numbers_of_another_kind(self, file, place, values):
        def change(node):
            shape = node[place].shape
            del node[place]
            node[place] = np.zeros(shape) if values is None else values

        self.refuse(file, change, place.split("/")[1], "holds")

    @pytest.mark.parametrize("group", ["curve", "ladder", "bounds", "symmetries", "checks"])
    @pytest.mark.parametrize("kind", ["missing", "array"])
    def test_groups(self, file, group, kind):
        def change(node):
            del node[group]
            if kind == "array":
                node[group] = np.arange(3.0)

        self.refuse(file, change)

    def test_an_outward_run_that_is_none(self, file):
        def change(node):
            del node["outward"]
            node["outward"] = 1.0

        self.refuse(file, change)

    @pytest.mark.parametrize(
        ("place", "index", "value", "words"),
        [
            ("curve/radius", 0, np.nan, "ascending"),
            ("curve/radius", 0, 0.3, "ascending"),
            ("curve/radius", 0, -1.0, "positive"),
            ("curve/radius", 2, np.inf, "ascending"),
            ("ladder/beta", 5, np.nan, "beta"),
            ("ladder/beta", 5, -1.0, "beta"),
            ("outward/tether", 1, np.inf, "tether"),
            ("ladder/marks", 0, 10**6, "mark"),
            ("ladder/marks", 0, -1, "mark"),
            ("bounds/marks", 0, 3, "mark"),
            ("bounds/marks", 0, -1, "mark"),
            ("bounds/cutoff", 0, 0.5, "cutoffs"),
        ],
    )
    def test_numbers_that_no_run_has(self, file, place, index, value, words):
        self.refuse(file, lambda node: node[place].__setitem__(index, value), words)

    def test_without_islands(self, file):
        """Nothing could be computed from none."""

        def change(node):
            for name, axis in {"log_scale": 1, "draw_loss": 2, "draw_distance": 2}.items():
                self.cut(node["ladder"], name, axis)
            for name in ("log_partition", "loss", "distance", "acceptance", "divergent", "stride"):
                self.cut(node["ladder"], name, 1)

        self.refuse(file, change, "no island")

    @pytest.mark.parametrize(("axis", "name"), [(1, "draw"), (3, "particle")])
    def test_without_draws(self, file, axis, name):
        def change(node):
            for array in ("draw_loss", "draw_distance"):
                self.cut(node["ladder"], array, axis)

        self.refuse(file, change, f"no {name}")

    @staticmethod
    def cut(node, name, axis):
        values = np.take(node[name][()], [], axis=axis)
        del node[name]
        node[name] = values

    def test_a_record_without_an_estimate(self, file):
        self.refuse(file, lambda node: node.parent["volume"].__delitem__("anneal"), "no estimate")

    def test_links(self, file):
        def change(node):
            del node["outward"]
            node["outward"] = h5py.SoftLink("/anneal/ladder")

        self.refuse(file, change, "Link")

    def test_damage_in_text(self, file):
        def change(node):
            del node["checks/remedy"]
            node["checks/remedy"] = np.array([b"\xff\xfe", b"x"])

        self.refuse(file, change)


def test_the_axes_name_every_array_of_the_records():
    from landscape.anneal_store import _ISLANDS

    arrays = {f.name for f in dataclasses.fields(Islands) if "Array" in str(f.type)}
    assert set(_ISLANDS) == arrays
