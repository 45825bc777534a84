"""Result files: what is read is what was written, or a ResultFileError."""

from __future__ import annotations

import dataclasses
import os
import random
import socket
import subprocess
import sys

import h5py
import numpy as np
import pytest
import xarray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landscape.errors import LandscapeError, ResultFileError, TerminatedError
from landscape.partial import PartialFile
from landscape.results import Density, Estimate, HessianResult, Moments, RunInfo, Spectrum
from landscape.store import atomic_h5, load, open_untrusted, result_name, run_key, save

AWKWARD = [0.1, -0.0, 5e-324, 1.7976931348623157e308, np.nan, np.inf, -np.inf, 1 / 3]


def spectrum(operator: str, *, vectors: np.ndarray | None = None) -> Spectrum:
    return Spectrum(
        operator=operator,
        method="lanczos" if operator == "ggn" else "exact",
        eigenvalues=np.array(AWKWARD),
        residuals=np.array(AWKWARD[::-1]),
        converged=np.arange(8) % 3 == 0,
        tol=1e-8,
        top=2,
        bottom=1,
        orthogonality=1 / 7,
        symmetry=float("nan"),
        n_restarts=3,
        n_matvecs=2**40,
        eigenvectors=vectors,
    )


def estimate(start: float) -> Estimate:
    return Estimate(value=start / 3, stderr=np.nan, lower=-np.inf, upper=start / 7)


def density(operator: str) -> Density:
    generator = np.random.default_rng(3)
    return Density(
        operator=operator,
        nodes=generator.normal(size=(3, 5)),
        weights=generator.random((3, 5)),
        grid=np.linspace(-1, 1, 11),
        density=generator.random(11),
        stderr=np.full(11, np.nan),
        bandwidth=0.3,
        n_deflated=2,
        n_matvecs=15,
    )


def moments(operator: str) -> Moments:
    return Moments(
        operator=operator,
        trace=estimate(1),
        trace_square=estimate(2),
        negative_mass=estimate(3),
        near_zero_mass=estimate(4),
        resolution=1e-7,
        n=40,
        n_probes=3,
    )


def info(**changes: object) -> RunInfo:
    values = {
        "schema": "landscape/1",
        "command": "hessian",
        "argv": ("landscape", "hessian", "a b", "ü\n\x1b"),
        "config": {"set": {"width": 3, "nested": [1, 2.5, None]}, "params": [], "tol": 1e-8},
        "key": "ab" * 32,
        "seed": -5,
        "versions": {"torch": "2", "numpy": "1"},
        "device": "cpu",
        "dtype": "float64",
        "task": "täsk.py",
        "task_sha256": "",
        "checkpoint": "a/b.pt",
        "checkpoint_sha256": "cd" * 32,
        "step": 12,
        "n_parameters": 26,
        "n_examples": 12,
        "loss": 1 / 3,
        "gradient_norm": 5e-324,
        "status": "complete",
        "started": "2000-01-01T00:00:00+00:00",
        "finished": "2000-01-01T00:00:01+00:00",
        "wall_seconds": 0.1,
        "n_matvecs": 100,
        "n_forward": 2,
        "n_gradient": 1,
        "warnings": ("one", "two"),
        **changes,
    }
    return RunInfo(**values)


@pytest.fixture(scope="module")
def result() -> HessianResult:
    vectors = np.random.default_rng(0).normal(size=(3, 26)).astype(np.float32)
    return HessianResult(
        info=info(),
        spectra={"hessian": spectrum("hessian", vectors=vectors), "ggn": spectrum("ggn")},
        densities={"hessian": density("hessian"), "ggn": density("ggn")},
        moments={"hessian": moments("hessian")},
        indices=np.array([1, 4, 9]),
    )


def assert_same(a: object, b: object) -> None:
    """Equal bit for bit, types included."""
    assert type(a) is type(b)
    if dataclasses.is_dataclass(a):
        for f in dataclasses.fields(a):
            assert_same(getattr(a, f.name), getattr(b, f.name))
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, float):
        assert np.float64(a).tobytes() == np.float64(b).tobytes()
    else:
        assert a == b


class TestRoundTrip:
    def test_every_field(self, file, result):
        assert_same(load(file), result)

    def test_what_may_be_absent(self, tmp_path):
        small = HessianResult(
            info=info(step=None, warnings=(), argv=(), config={}), spectra={"ggn": spectrum("ggn")}
        )
        save(tmp_path / "a.h5", small)
        assert_same(load(tmp_path / "a.h5"), small)

    def test_long_command_lines(self, tmp_path):
        argv = tuple(f"runs/a-long-name/step_{step:010d}.safetensors" for step in range(5000))
        save(tmp_path / "a.h5", HessianResult(info=info(argv=argv), spectra={}))
        assert load(tmp_path / "a.h5").info.argv == argv

    def test_names_that_are_not_utf8_are_escaped(self, tmp_path):
        odd = HessianResult(info=info(checkpoint="a\udcff.pt"), spectra={})
        save(tmp_path / "a.h5", odd)
        assert load(tmp_path / "a.h5").info.checkpoint == "a\\udcff.pt"

    def test_no_spectra_and_empty_arrays(self, tmp_path):
        nothing = dataclasses.replace(
            spectrum("hessian"),
            eigenvalues=np.zeros(0),
            residuals=np.zeros(0),
            converged=np.zeros(0, bool),
            top=0,
            bottom=0,
        )
        empty = HessianResult(info=info(), spectra={"hessian": nothing})
        save(tmp_path / "a.h5", empty)
        assert_same(load(tmp_path / "a.h5"), empty)

    def test_a_path_as_text(self, file, result):
        assert_same(load(str(file)), result)

    def test_xarray_opens_it(self, file, result):
        with xarray.open_datatree(file, engine="h5netcdf") as tree:
            assert tree.attrs["schema"] == "landscape/1"
            found = tree["spectrum/hessian"]
            np.testing.assert_array_equal(
                found["eigenvalues"], result.spectra["hessian"].eigenvalues
            )
            assert found["eigenvalues"].dims == ("k",)
            assert found["converged"].dtype == bool
            assert found["eigenvectors"].dims == ("vector", "n")
            assert found["vector"].values.tolist() == [0, 1, 7]
            assert tree["density/ggn"]["nodes"].dims == ("probe", "step")
            assert tree["density/ggn"]["density"].dims == ("grid",)
            assert tree["moments/hessian"].attrs["n_probes"] == 3
            assert tree["data"]["indices"].values.tolist() == [1, 4, 9]


class TestNames:
    def test_result_name(self):
        assert result_name("runs/step_1.safetensors", "hessian", "ab" * 32) == (
            "step_1.hessian.abababab.h5"
        )

    def test_run_key_depends_on_values_not_on_order(self):
        assert run_key({"a": 1, "b": [2]}) == run_key({"b": [2], "a": 1})
        keys = {run_key({"a": value}) for value in (1, 1.5, "1", None, [1], True, float("nan"))}
        assert len(keys) == 7


class TestUntrusted:
    def refuse(self, path, *words):
        with pytest.raises(ResultFileError) as caught:
            load(path)
        assert caught.value.exit_code == 2
        for word in (str(path), *words):
            assert word in str(caught.value)

    def test_missing(self, tmp_path):
        self.refuse(tmp_path / "none.h5", "does not exist")

    def test_folder(self, tmp_path):
        self.refuse(tmp_path, "is a folder")

    def test_other_schema(self, file):
        with h5py.File(file, "r+") as opened:
            opened.attrs["schema"] = "landscape/2"
        self.refuse(file, "landscape/2", "landscape/1")

    @pytest.mark.parametrize("value", [None, 3, "other/1", b"\xff", np.arange(3)], ids=str)
    def test_foreign(self, file, value):
        with h5py.File(file, "r+") as opened:
            del opened.attrs["schema"]
            if value is not None:
                opened.attrs["schema"] = value
        self.refuse(file)

    @pytest.mark.parametrize("link", ["external", "soft"])
    @pytest.mark.parametrize("place", ["spectrum/hessian/residuals", "spectrum/hessian", "data"])
    def test_links(self, file, tmp_path, link, place):
        other = tmp_path / "other.h5"
        other.write_bytes(file.read_bytes())
        with h5py.File(file, "r+") as opened:
            del opened[place]
            opened[place] = (
                h5py.ExternalLink("other.h5", place)
                if link == "external"
                else h5py.SoftLink("/spectrum/ggn/residuals")
            )
        self.refuse(file, "Link")

    def test_external_storage(self, file, tmp_path):
        secret = tmp_path / "secret"
        secret.write_bytes(b"x" * 64)
        with h5py.File(file, "r+") as opened:
            del opened["spectrum/hessian/residuals"]
            opened.create_dataset(
                "spectrum/hessian/residuals",
                shape=(8,),
                dtype="f8",
                external=[(str(secret), 0, 64)],
            )
        self.refuse(file, "external storage", "residuals")

    def test_virtual_dataset(self, file, tmp_path):
        other = tmp_path / "other.h5"
        other.write_bytes(file.read_bytes())
        layout = h5py.VirtualLayout(shape=(8,), dtype="f8")
        layout[:] = h5py.VirtualSource(str(other), "spectrum/ggn/residuals", shape=(8,))
        with h5py.File(file, "r+") as opened:
            del opened["spectrum/hessian/residuals"]
            opened.create_virtual_dataset("spectrum/hessian/residuals", layout)
        self.refuse(file, "external storage", "residuals")

    @pytest.mark.parametrize("chunks", [None, (1 << 20,)], ids=["contiguous", "chunked"])
    def test_forged_size(self, file, chunks):
        with h5py.File(file, "r+") as opened:
            del opened["spectrum/hessian/residuals"]
            opened.create_dataset(
                "spectrum/hessian/residuals", shape=(1 << 40,), dtype="f8", chunks=chunks
            )
        assert file.stat().st_size < 1 << 20
        self.refuse(file, "residuals", str(1 << 40))

    def test_compression_bomb(self, file):
        with h5py.File(file, "r+") as opened:
            del opened["spectrum/hessian/residuals"]
            # One chunk is there; the others would be filled in while reading.
            data = opened.create_dataset(
                "spectrum/hessian/residuals",
                shape=(1 << 31,),
                dtype="f8",
                chunks=(1 << 20,),
                compression="gzip",
            )
            data[0] = 1.0
        self.refuse(file, "residuals")

    @pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(RunInfo)])
    def test_missing_attributes_of_the_run(self, file, field):
        with h5py.File(file, "r+") as opened:
            del opened.attrs[field]
        if field == "step":
            assert load(file).info.step is None
        else:
            self.refuse(file, field)

    @pytest.mark.parametrize(
        "place", ["moments/hessian:trace_lower", "spectrum/ggn:tol", "density/ggn:bandwidth"]
    )
    def test_missing_attributes_of_a_group(self, file, place):
        group, name = place.split(":")
        with h5py.File(file, "r+") as opened:
            del opened[group].attrs[name]
        self.refuse(file, name)

    @pytest.mark.parametrize(
        "place", ["spectrum/ggn/residuals", "density/ggn/nodes", "density/ggn/grid", "data/indices"]
    )
    @pytest.mark.parametrize("kind", ["missing", "group", "scalar", "shape", "text"])
    def test_wrong_arrays(self, file, place, kind):
        with h5py.File(file, "r+") as opened:
            del opened[place]
            if kind == "group":
                opened.create_group(place)
            elif kind == "text":
                opened[place] = ["a", "b"]
            elif kind != "missing":
                opened[place] = 1.0 if kind == "scalar" else np.zeros((7, 7, 7))
        if place == "data/indices" and kind in ("missing", "scalar", "shape"):
            return  # Indices are kept for the record; nothing is computed from them.
        self.refuse(file)

    @pytest.mark.parametrize(
        ("attribute", "value"),
        [
            ("config", "{"),
            ("config", "3"),
            ("argv", "null"),
            ("step", "x"),
            ("step", np.inf),
            ("loss", np.arange(3)),
            ("n_parameters", -1),
            ("n_examples", b"\xff"),
        ],
    )
    def test_wrong_attributes(self, file, attribute, value):
        with h5py.File(file, "r+") as opened:
            opened.attrs[attribute] = value
        self.refuse(file)

    @pytest.mark.parametrize("group", ["spectrum", "density", "moments", "spectrum/ggn"])
    def test_a_data_set_in_place_of_a_group(self, file, group):
        with h5py.File(file, "r+") as opened:
            del opened[group]
            opened[group] = np.arange(3.0)
        self.refuse(file)

    def test_truncation_anywhere(self, tmp_path, stored):
        choose = random.Random(0)
        path = tmp_path / "cut.h5"
        for length in [
            0,
            1,
            8,
            len(stored) - 1,
            *(choose.randrange(len(stored)) for _ in range(30)),
        ]:
            path.write_bytes(stored[:length])
            self.refuse(path, "truncated")

    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        flips=st.lists(
            st.tuples(st.integers(0, 10**9), st.integers(1, 255)), min_size=1, max_size=4
        )
    )
    def test_flipped_bytes_load_or_are_refused(self, tmp_path, stored, flips):
        changed = bytearray(stored)
        for place, mask in flips:
            changed[place % len(changed)] ^= mask
        path = tmp_path / "flipped.h5"
        path.write_bytes(changed)
        try:
            found = load(path)
        except ResultFileError:
            return
        assert isinstance(found, HessianResult)

    def test_errors_of_the_caller_pass_unchanged(self, file):
        with pytest.raises(TerminatedError), open_untrusted(file):
            raise TerminatedError("now")


class TestAtomicWriting:
    def test_a_failure_leaves_the_old_file(self, file, stored):
        def interrupted():
            with atomic_h5(file) as opened:
                opened["half"] = 1
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert file.read_bytes() == stored
        assert list(file.parent.iterdir()) == [file]

    def test_unwritable(self, file, result):
        with pytest.raises(ResultFileError, match=r"cannot write .*--out"):
            save(file / "below.h5", result)

    def test_a_full_disk(self, tmp_path, result, monkeypatch):
        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ResultFileError, match="the disk is full"):
            save(tmp_path / "a.h5", result)
        assert list(tmp_path.iterdir()) == []

    def test_new_folders_are_made(self, tmp_path, result):
        save(tmp_path / "a" / "b" / "c.h5", result)
        assert load(tmp_path / "a" / "b" / "c.h5").info.seed == -5


class TestPartialFile:
    def unit(self):
        return {"nodes": np.array(AWKWARD), "rows": np.zeros((0, 3)), "count": 3, "flag": True}

    @pytest.mark.parametrize("name", ["probe-0", "anneal/ladder/57/0/state", "b probe%2F", "é"])
    def test_units_come_back(self, tmp_path, name):
        path = tmp_path / "a.h5"
        first = PartialFile(path, "key")
        first.put(name, self.unit())
        first.put("gone", {"x": np.ones(1)})
        first.drop("gone")
        first.seconds = 2.5
        first.flush()
        again = PartialFile(path, "key")
        assert (again.n_resumed, again.seconds) == (1, 2.5)
        found = again.get(name)
        assert found.keys() == self.unit().keys()
        np.testing.assert_array_equal(found["nodes"], AWKWARD)
        assert found["rows"].shape == (0, 3)
        assert int(found["count"]) == 3
        assert again.get("gone") is None
        again.remove()
        again.remove()
        assert list(tmp_path.iterdir()) == []

    def test_another_key_is_ignored(self, tmp_path):
        first = PartialFile(tmp_path / "a.h5", "key")
        first.put("unit", self.unit())
        first.flush()
        assert PartialFile(tmp_path / "a.h5", "other").n_resumed == 0

    def test_written_on_the_interval_only(self, tmp_path):
        slow, fast = (
            PartialFile(tmp_path / "a.h5", "k"),
            PartialFile(tmp_path / "b.h5", "k", interval=0),
        )
        for units in (slow, fast):
            units.put("unit", self.unit())
        assert [p.name for p in tmp_path.iterdir()] == ["b.h5.partial"]
        assert not slow.due()
        assert fast.due()

    def test_nothing_new_is_not_written(self, tmp_path):
        PartialFile(tmp_path / "a.h5", "k").flush()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "no-units", "unit-is-array"])
    def test_damage_only_costs_time(self, tmp_path, damage):
        first = PartialFile(tmp_path / "a.h5", "key")
        first.put("unit", self.unit())
        first.flush()
        content = first.path.read_bytes()
        if damage in ("empty", "cut"):
            first.path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
        else:
            with h5py.File(first.path, "r+") as opened:
                if damage == "foreign":
                    del opened.attrs["schema"]
                elif damage == "no-units":
                    del opened["units"]
                else:
                    opened["units/array"] = np.ones(3)
        again = PartialFile(tmp_path / "a.h5", "key")
        assert (again.n_resumed, again.seconds) == (0, 0.0)
        again.put("unit", self.unit())
        again.flush()
        assert PartialFile(tmp_path / "a.h5", "key").n_resumed == 1

    def test_stale_temporary_files_of_dead_processes_are_removed(self, tmp_path):
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        host = socket.gethostname()
        gone = [f"a.h5.{host}.{dead.pid}.tmp", f"a.h5.partial.{host}.{dead.pid}.tmp"]
        kept = [
            f"a.h5.{host}.{os.getpid()}.tmp",  # This process lives.
            f"a.h5.other-{host}.{dead.pid}.tmp",  # Another machine's process may.
            f"b.h5.{host}.{dead.pid}.tmp",  # Another result.
            f"a.h5.{host}.x.tmp",
        ]
        for name in [*gone, *kept]:
            (tmp_path / name).touch()
        PartialFile(tmp_path / "a.h5", "key")
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)

    def test_names_with_glob_characters(self, tmp_path):
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        ending = f".h5.{socket.gethostname()}.{dead.pid}.tmp"
        for name in ("[ab]", "a"):
            (tmp_path / (name + ending)).touch()
        PartialFile(tmp_path / "[ab].h5", "key")
        assert [p.name for p in tmp_path.iterdir()] == ["a" + ending]


def test_result_file_errors_are_usage_errors():
    assert issubclass(ResultFileError, LandscapeError)
    assert ResultFileError("x").exit_code == 2
