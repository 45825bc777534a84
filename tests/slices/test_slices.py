"""Slices of the loss against closed forms, dense Hessians, numpy and hand-written directions."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import landscape.slices.eigenvectors as eigenvectors_module
import landscape.slices.surface as surface_module
from landscape import Task
from landscape.compare.path import state_of
from landscape.data import materialise
from landscape.errors import CheckpointError, TaskError, UsageError
from landscape.params import ParameterSpace
from landscape.risk import Risk
from landscape.rng import normal, stream
from landscape.settings import Settings
from landscape.slice_runs import SliceRun, loss_slice
from landscape.slices.directions import (
    Ray,
    default_span,
    filter_normalised,
    orthogonal,
    principal_components,
)
from landscape.slices.options import Along, SliceOptions, coordinates, parse_along, parse_span
from landscape.slices.surface import Surface, evaluate
from landscape.store import load, save
from landscape.units import MemoryUnits, silent

DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(20, 5, generator=DRAWS, dtype=torch.float64)
Y = torch.randn(20, 3, generator=DRAWS, dtype=torch.float64)
LABELS = torch.arange(20) % 3


def network(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def classifier(seed=1):
    return Task(model=network(seed), data=(X, LABELS), criterion="cross_entropy")


def quadratic():
    """A linear model with a squared loss: the loss is its own quadratic model."""
    torch.manual_seed(3)
    return Task(model=nn.Linear(5, 3).double(), data=(X, Y), criterion="mse")


def norms(seed=1):
    """A network whose buffers matter."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    model.train()
    for _ in range(3):
        model(X * (1 + seed))
    return Task(model=model.eval(), data=(X, LABELS), criterion="cross_entropy")


def saved(folder, name, task):
    path = folder / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in task.model.state_dict().items()}, path)
    return path


def loss_of(task):
    return Risk(task, materialise(task.data)).loss()


def dense_hessian(task):
    """The Hessian in the order of the flat vector, by autograd."""
    risk = Risk(task, materialise(task.data))
    names = risk.space.names

    def loss(vector):
        values = dict(zip(names, risk.space.split(vector), strict=True))
        outputs = torch.func.functional_call(risk.model, values, (X,))
        return task.resolved_criterion.loss(outputs, task.data)

    return torch.func.hessian(loss)(risk.space.vector())


def sliced(task, *, settings=None, **more):
    """On the CPU, where the numbers here are computed otherwise, too."""
    settings = dataclasses.replace(Settings() if settings is None else settings, device="cpu")
    return loss_slice(task, settings=settings, **more)


def options(*along, **more):
    return SliceOptions(along=along, **more)


@pytest.fixture
def count(monkeypatch):
    """Coordinates' evaluations so far."""
    calls = []
    real = surface_module.loss_here

    def counted(risk):
        calls.append(1)
        return real(risk)

    monkeypatch.setattr(surface_module, "loss_here", counted)
    return calls


class TestCoordinates:
    @pytest.mark.parametrize(
        ("coarse", "fine"),
        [((-1, 1, 11), (-1, 1, 21)), ((-0.3, 0.7, 4), (-0.3, 0.7, 10)), ((-1, 1, 11), (-2, 2, 21))],
    )
    def test_finer_and_wider_grids_contain_coarser_ones(self, coarse, fine):
        assert set(coordinates(*coarse)) <= set(coordinates(*fine))

    def test_ends_are_exact_and_so_is_the_middle(self):
        values = coordinates(-0.1, 0.1, 7)
        assert (values[0], values[3], values[-1]) == (-0.1, 0.0, 0.1)
        assert np.allclose(values, np.linspace(-0.1, 0.1, 7), rtol=1e-15, atol=1e-17)


class TestOptions:
    def test_directions(self):
        assert parse_along("eigen:-2") == Along(kind="eigen", number=-2)
        assert parse_along("to:a:b.pt") == Along(kind="to", path="a:b.pt")
        assert parse_along("pca:3").number == 3
        assert parse_span("-1,2e1") == (-1.0, 20.0)

    def test_spans_of_axes(self):
        one = options("random", "random", spans=((0, 1),))
        assert (one.span(0), one.span(1)) == ((0, 1), (0, 1))
        two = options("random", "random", spans=((0, 1), (2, 3)))
        assert (two.span(0), two.span(1)) == ((0, 1), (2, 3))
        assert options("random").span(0) is None
        assert (options("random").count, options("random", "random").count) == (41, 21)


class TestPrediction:
    @pytest.mark.parametrize(
        "along",
        [("random",), ("eigen:1",), ("eigen:1", "eigen:-1"), ("random", "eigen:2")],
        ids=" ".join,
    )
    def test_a_quadratic_loss_equals_its_prediction(self, along):
        found = sliced(quadratic(), options=options(*along, points=7, spans=((-2, 3),)))
        assert np.abs(found.excess_loss - found.quadratic).max() < 1e-10
        assert found.excess_loss.max() > 0.1
        assert found.excess_loss.shape == (7,) * len(along)

    def test_slope_and_curvatures_are_those_of_the_dense_matrix(self):
        task = classifier()
        found = sliced(task, options=options("random", "random", points=2))
        space = ParameterSpace(task.model)
        first = filter_normalised(space, seed=0, index=0)
        second = filter_normalised(space, seed=0, index=1)
        second = second - (second @ first) / (first @ first) * first
        hessian = dense_hessian(task)
        gradient = Risk(task, materialise(task.data)).gradient()
        for direction, d in zip(found.directions, (first, second), strict=True):
            assert direction.slope == pytest.approx(float(gradient @ d), rel=1e-10)
            assert direction.curvature == pytest.approx(float(d @ hessian @ d), rel=1e-10)
        assert found.mixed == pytest.approx(float(first @ hessian @ second), rel=1e-9)
        assert found.info.n_matvecs == 2

    def test_finite_differences_of_the_slice_are_slope_and_curvature(self):
        near = options("random", points=3, spans=((-1e-3, 1e-3),))
        found = sliced(classifier(), options=near)
        [direction] = found.directions
        low, _, high = found.excess_loss
        assert (high - low) / 2e-3 == pytest.approx(direction.slope, rel=1e-5)
        assert (high + low) / 1e-6 == pytest.approx(direction.curvature, rel=1e-5)
        assert found.info.n_matvecs == 1


class TestEigenvectors:
    @pytest.mark.parametrize("number", [1, 2, 5, -1, -3, 39, -39])
    def test_curvature_is_the_eigenvalue(self, number):
        task = classifier()
        found = sliced(task, options=options(f"eigen:{number}", points=3))
        values = torch.linalg.eigvalsh(dense_hessian(task)).flip(0)
        wanted = float(values[number - 1 if number > 0 else number])
        [direction] = found.directions
        assert direction.eigenvalue == pytest.approx(wanted, abs=1e-9)
        assert direction.curvature == pytest.approx(wanted, abs=1e-9)
        assert direction.length == pytest.approx(1, abs=1e-12)
        assert direction.converged

    def test_vectors_are_the_dense_ones_with_their_largest_entry_positive(self):
        task = classifier()
        found = sliced(task, options=options("eigen:1", "eigen:2", points=2))
        _, vectors = torch.linalg.eigh(dense_hessian(task))
        for own, other in zip(found.eigenvectors, vectors.T.flip(0).numpy(), strict=False):
            assert abs(own @ other) == pytest.approx(1, abs=1e-9)
            assert own[np.abs(own).argmax()] > 0
        assert abs(found.mixed) < 1e-8

    def test_both_names_of_one_vector(self):
        with pytest.raises(UsageError, match="same eigenvector"):
            sliced(classifier(), options=options("eigen:1", "eigen:-39"))
        with pytest.raises(UsageError, match=r"eigen:40.*39 parameters"):
            sliced(classifier(), options=options("eigen:40"))

    def test_what_is_not_converged_is_said(self, monkeypatch):
        short = functools.partial(eigenvectors_module.extreme_eigenpairs, max_matvecs=4)
        monkeypatch.setattr(eigenvectors_module, "extreme_eigenpairs", short)
        found = sliced(classifier(), options=options("eigen:1", points=3))
        [direction] = found.directions
        assert not direction.converged
        assert direction.residual > 1e-8
        # What is drawn is the direction that there is.
        v = torch.as_tensor(found.eigenvectors[0])
        assert direction.curvature == pytest.approx(float(v @ dense_hessian(classifier()) @ v))
        assert "eigen:1 is not converged" in found.info.warnings

    def test_of_selected_parameters(self):
        task = classifier()
        settings = Settings(params=("2.weight",))
        found = sliced(task, settings=settings, options=options("eigen:1", points=2))
        block = dense_hessian(task)[24:36, 24:36]
        largest = float(torch.linalg.eigvalsh(block)[-1])
        assert found.directions[0].curvature == pytest.approx(largest, rel=1e-9)
        assert found.info.n_parameters == 12


class TestRandom:
    def test_filters_are_normalised_as_written_by_hand(self):
        model = nn.Sequential(
            *(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten()), nn.Linear(12, 4, bias=False)
        ).double()
        with torch.no_grad():
            model[3].weight[1] = 0
        space = ParameterSpace(model)
        found = dict(
            zip(
                space.names,
                space.split(filter_normalised(space, seed=5, index=1)),
                strict=True,
            )
        )
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                assert not found[name].any()  # Biases and parameters of norms stay.
                continue
            draw = normal(parameter.numel(), stream(5, "slice", 1, name), like=parameter)
            draw = draw.reshape(parameter.shape)
            for filter_, own, z in zip(parameter, found[name], draw, strict=True):
                expected = z / torch.sqrt((z**2).sum()) * torch.sqrt((filter_**2).sum())
                assert torch.allclose(own, expected, rtol=1e-13)
        assert not found["3.weight"][1].any()

    def test_a_parameter_has_the_same_draw_whatever_else_is_selected(self):
        model = network()
        whole, part = ParameterSpace(model), ParameterSpace(model, ("2.weight",))
        every = filter_normalised(whole, seed=0, index=0)
        assert torch.equal(every[24:36], filter_normalised(part, seed=0, index=0))
        other = filter_normalised(whole, seed=0, index=1)
        assert not torch.equal(every, other)
        assert not torch.equal(every, filter_normalised(whole, seed=1, index=0))

    def test_without_filters(self):
        settings = Settings(params=("*.bias",))
        with pytest.raises(UsageError, match="none of the parameters has filters"):
            sliced(classifier(), settings=settings, options=options("random"))


class TestTowards:
    @pytest.mark.parametrize("build", [classifier, norms])
    def test_it_ends_with_the_checkpoints_own_loss_exactly(self, build, tmp_path):
        path = saved(tmp_path, "b", build(2))
        found = sliced(build(1), options=options(f"to:{path}", points=5))
        assert found.loss[-1] == loss_of(build(2))
        assert found.loss[0] == loss_of(build(1))
        assert found.excess_loss[0] == 0
        assert found.x.tolist() == [0, 0.25, 0.5, 0.75, 1]

    def test_the_way_is_straight(self, tmp_path):
        path = saved(tmp_path, "b", classifier(2))
        found = sliced(classifier(1), options=options(f"to:{path}", points=3))
        half = classifier(1)
        with torch.no_grad():
            for own, other in zip(
                half.model.parameters(), classifier(2).model.parameters(), strict=True
            ):
                own.copy_((own + other) / 2)
        assert found.loss[1] == pytest.approx(loss_of(half), rel=1e-12)

    def test_a_plane_through_three_networks(self, tmp_path):
        paths = [saved(tmp_path, name, norms(s)) for name, s in (("b", 2), ("c", 3))]
        found = sliced(
            norms(1),
            options=options(*(f"to:{p}" for p in paths), points=5, spans=((-0.5, 1.5),)),
        )
        assert found.loss[3, 1] == loss_of(norms(2))  # At (1, 0).
        first, second = found.directions
        whole = second.length / math.sqrt(1 - second.cosine**2)
        place = second.cosine * whole / first.length
        again = sliced(
            norms(1),
            options=options(
                *(f"to:{p}" for p in paths), points=2, spans=((place, place + 1), (1, 2))
            ),
        )
        # The third one, buffers included.
        assert again.loss[0, 0] == pytest.approx(loss_of(norms(3)), rel=1e-9)
        assert any("running statistics" in note for note in found.info.warnings)
        assert any("orthogonal" in note for note in found.info.warnings)

    def test_selected_parameters_move_alone(self, tmp_path):
        path = saved(tmp_path, "b", norms(2))
        settings = Settings(params=("3.*",))
        found = sliced(norms(1), settings=settings, options=options(f"to:{path}", points=2))
        mixed, other = norms(1), norms(2)
        mixed.model[3].load_state_dict(other.model[3].state_dict())
        assert found.loss[-1] == loss_of(mixed)

    def test_to_itself_and_to_another_architecture(self, tmp_path):
        path = saved(tmp_path, "a", classifier(1))
        with pytest.raises(UsageError, match="same parameters as the anchor"):
            sliced(classifier(1), options=options(f"to:{path}"))
        other = saved(tmp_path, "c", quadratic())
        with pytest.raises(CheckpointError):
            sliced(classifier(1), options=options(f"to:{other}"))


class TestPrincipalComponents:
    def test_against_numpy(self):
        rows = torch.randn(6, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        rows = rows * torch.linspace(0.2, 3, 30, dtype=torch.float64) + 7
        found = principal_components(rows)
        centred = rows.numpy() - rows.numpy().mean(0)
        _, values, vectors = np.linalg.svd(centred, full_matrices=False)
        assert len(found.vectors) == 5  # One less than there are points.
        assert np.allclose(found.shares, (values**2 / (values**2).sum())[:5], rtol=1e-10)
        for own, other in zip(found.vectors.numpy(), vectors, strict=False):
            assert abs(own @ other) == pytest.approx(1, abs=1e-10)
            assert own @ (rows[-1] - rows[0]).numpy() >= 0

    def test_a_trajectory_is_projected(self, tmp_path):
        start, end = network(1), network(2)
        paths = []
        for step, t in enumerate([1.0, 0.6, 0.3]):
            state = {
                k: torch.lerp(v, end.state_dict()[k], t) for k, v in start.state_dict().items()
            }
            paths.append(tmp_path / f"step_{step}.safetensors")
            save_file(state, paths[-1])
        found = sliced(classifier(1), options=options("pca:1", points=3), trajectory=paths)
        [direction] = found.directions
        assert direction.share == pytest.approx(1)
        vectors = [ParameterSpace(m).vector() for m in (start, end)]
        length = float(torch.linalg.vector_norm(vectors[1] - vectors[0]))
        places = np.array([p.x for p in found.trajectory])
        # The last one is the farthest from the first: coordinates grow.
        assert np.allclose(places, -length * np.array([1, 0.6, 0.3]), rtol=1e-9)
        assert max(p.off for p in found.trajectory) < 1e-9
        assert [p.step for p in found.trajectory] == [0, 1, 2]
        assert found.x[0] < -length < 0 < found.x[-1]
        with pytest.raises(UsageError, match="have 1 principal component"):
            sliced(classifier(1), options=options("pca:2"), trajectory=paths)

    def test_points_off_the_slice(self, tmp_path):
        paths = [saved(tmp_path, f"s{k}", classifier(k)) for k in (2, 3)]
        found = sliced(classifier(1), options=options("random", points=2), trajectory=paths)
        d = filter_normalised(ParameterSpace(network(1)), seed=0, index=0)
        anchor = ParameterSpace(network(1)).vector()
        for position, seed in zip(found.trajectory, (2, 3), strict=True):
            away = ParameterSpace(network(seed)).vector() - anchor
            x = float(away @ d / (d @ d))
            assert position.x == pytest.approx(x, rel=1e-10)
            assert position.off == pytest.approx(float((away - x * d).norm()), rel=1e-10)

    def test_refused(self, tmp_path):
        with pytest.raises(UsageError, match="--trajectory"):
            sliced(classifier(), options=options("pca:1"))
        path = saved(tmp_path, "a", classifier(2))
        with pytest.raises(UsageError, match="one checkpoint"):
            sliced(classifier(), options=options("random"), trajectory=[path])


class TestOrthogonal:
    def test_by_hand(self):
        first, second = Ray(vector=torch.tensor([2.0, 0.0])), Ray(vector=torch.tensor([3.0, 4.0]))
        left = orthogonal(second, first, ("a", "b"), unit=False)
        assert left.vector.tolist() == [0, 4]
        assert left.cosine == pytest.approx(0.6)
        assert orthogonal(second, first, ("a", "b"), unit=True).vector.tolist() == [0, 5]

    def test_parallel(self, tmp_path):
        vector = torch.tensor([1.0, 2.0])
        with pytest.raises(UsageError, match="b is parallel to --along a"):
            orthogonal(Ray(vector=-3 * vector), Ray(vector=vector), ("a", "b"), unit=True)
        half = classifier(1)
        other = classifier(2)
        with torch.no_grad():
            for own, end in zip(half.model.parameters(), other.model.parameters(), strict=True):
                own.copy_((own + end) / 2)
        paths = [saved(tmp_path, "b", half), saved(tmp_path, "c", other)]
        with pytest.raises(UsageError, match="parallel"):
            sliced(classifier(1), options=options(*(f"to:{p}" for p in paths)))


class TestSpans:
    def test_an_eigenvector_reaches_an_excess_like_the_loss(self):
        low, high = default_span("eigen", curvature=8.0, loss=4.0, norm=9.0, plane=False)
        assert (low, high) == (-1, 1)
        # Of a small loss at least 0.1, and of flat directions not beyond the parameters' norm.
        assert default_span("eigen", curvature=-0.2, loss=0, norm=9.0, plane=False) == (-1, 1)
        assert default_span("eigen", curvature=0.0, loss=1, norm=9.0, plane=True) == (-9, 9)
        assert default_span("eigen", curvature=1e-9, loss=1, norm=0.0, plane=True) == (-1, 1)

    def test_others(self):
        assert default_span("to", curvature=1, loss=1, norm=1, plane=False) == (0, 1)
        assert default_span("to", curvature=1, loss=1, norm=1, plane=True) == (-0.5, 1.5)
        assert default_span("random", curvature=1, loss=1, norm=1, plane=True) == (-1, 1)
        visited = default_span("pca", curvature=1, loss=1, norm=1, plane=True, visited=[-4, -2])
        assert visited == (-4.4, 0.4)

    def test_of_a_measurement(self):
        found = sliced(classifier(), options=options("eigen:1", points=3))
        [direction] = found.directions
        norm = float(ParameterSpace(network()).vector().norm())
        half = min(math.sqrt(2 * found.info.loss / direction.eigenvalue), norm)
        assert direction.high == pytest.approx(half, rel=6e-3)
        assert direction.low == -direction.high


class TestLosses:
    def test_behaviour_is_a_divergence_with_no_slope(self):
        settings = Settings(loss="behaviour")
        found = sliced(classifier(), settings=settings, options=options("random", points=5))
        assert np.array_equal(found.excess_loss, found.loss)
        assert abs(found.excess_loss[2]) < 1e-15
        assert found.excess_loss[[0, 1, 3, 4]].min() > 0
        assert abs(found.directions[0].slope) < 1e-12

    def test_points_that_are_not_finite_are_said(self):
        class Root(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))

            def forward(self, x):
                return torch.log(self.w * (1 + x[:, :1] ** 2))

        task = Task(model=Root(), data=(X, Y[:, :1]), criterion="mse")
        found = sliced(task, options=options("random", points=5, spans=((-2, 2),)))
        # The weight is 1, and so is the length of the direction.
        assert np.isfinite(found.excess_loss).tolist() in (
            [False, False, True, True, True],
            [True, True, True, False, False],
        )
        assert np.isinf(found.loss).any()
        assert np.isnan(found.loss).any()
        assert "not finite at 2 of 5 points" in found.info.warnings[0]

    def test_float32(self):
        settings = Settings(dtype="float32")
        exact = sliced(classifier(), options=options("eigen:1", points=5))
        rough = sliced(classifier(), settings=settings, options=options("eigen:1", points=5))
        assert np.allclose(exact.excess_loss, rough.excess_loss, rtol=1e-3, atol=1e-5)


class TestReuse:
    RAYS = (Ray(vector=torch.linspace(-1, 1, 39, dtype=torch.float64)),)

    def risk(self):
        task = classifier()
        return Risk(task, materialise(task.data))

    def test_finer_and_wider_grids_compute_only_what_is_new(self, count):
        risk, units = self.risk(), MemoryUnits()
        surface = Surface(risk, self.RAYS)

        def run(*grid):
            before = len(count)
            at = coordinates(*grid)[:, None]
            found, known = evaluate(risk, surface, at, units=units, progress=silent)
            return found, known, len(count) - before

        coarse, _, new = run(-1, 1, 11)
        assert new == 11
        fine, known, new = run(-1, 1, 21)
        assert new == 10
        assert np.array_equal(fine[::2], coarse)
        _, known, new = run(-2, 2, 21)
        assert new == 10
        again, known, new = run(-1, 1, 11)
        assert (new, len(known.loss)) == (0, 31)
        assert np.array_equal(again, coarse)

    def test_an_interrupted_run_continues_with_the_same_numbers(self, count, tmp_path):
        whole = sliced(classifier(), options=options("eigen:1", "random", points=4))
        assert len(count) == 16
        units = MemoryUnits()

        def stop_at(limit):
            def progress(phase, done, total):
                if phase == "points" and done == limit:
                    raise KeyboardInterrupt

            return progress

        task = classifier()
        for limit in (3, 5):
            with pytest.raises(KeyboardInterrupt):
                measured(task, units, progress=stop_at(limit))
        found = measured(task, units)
        assert len(count) == 16 + 16
        for name in ("loss", "excess_loss", "quadratic", "x", "y"):
            assert np.array_equal(getattr(found, name), getattr(whole, name))
        assert found.info.n_matvecs == whole.info.n_matvecs
        assert found.info.n_forward == whole.info.n_forward >= 16

    def test_an_interrupted_search_for_eigenvectors_continues(self):
        class Eager(MemoryUnits):
            def due(self):
                return True

        def stop(phase, done, total):
            if (phase, done) == ("eigenvectors", 9):
                raise KeyboardInterrupt

        whole, units = measured(classifier(), MemoryUnits()), Eager()
        with pytest.raises(KeyboardInterrupt):
            measured(classifier(), units, progress=stop)
        assert units.get("lanczos") is not None
        found = measured(classifier(), units)
        assert np.array_equal(found.eigenvectors, whole.eigenvectors)
        assert np.array_equal(found.loss, whole.loss)
        assert found.info.n_matvecs == whole.info.n_matvecs

    def test_progress_counts_points(self):
        seen = []
        measured(classifier(), MemoryUnits(), progress=lambda *step: seen.append(step))
        points = [step for step in seen if step[0] == "points"]
        assert points == [("points", k + 1, 16) for k in range(16)]


def measured(task, units, *, progress=silent):
    from landscape.measurement import prepared

    run = SliceRun(
        **prepared(task, None, Settings(device="cpu"), None),
        options=options("eigen:1", "random", points=4),
    )
    return run.measure(units=units, progress=progress)


class TestUntouched:
    """The model's weights are bit for bit what they were."""

    class Fragile(nn.Module):
        """Cannot be evaluated far from its weights."""

        def __init__(self):
            super().__init__()
            self.inner = network()
            self.limit = float(self.inner[0].weight.detach().abs().max()) * 1.5

        def forward(self, x):
            if float(self.inner[0].weight.detach().abs().max()) > self.limit:
                raise RuntimeError("too far")
            return self.inner(x)

    @pytest.mark.parametrize("build", [classifier, norms])
    def test_after_a_run(self, build):
        task = build(1)
        risk = Risk(task, materialise(task.data))
        before = {k: v.clone() for k, v in task.model.state_dict().items()}
        own = [p.data_ptr() for p in task.model.parameters()]
        end = state_of(build(2).model)
        vector = risk.space.flatten([end[n] - before[n] for n in risk.space.names])
        surface = Surface(risk, [Ray(vector=vector, end=end)])
        at = np.array([[0.0], [0.7]])
        found, _ = evaluate(risk, surface, at, units=MemoryUnits(), progress=silent)
        assert found[0] != found[1]
        after = task.model.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert own == [p.data_ptr() for p in task.model.parameters()]

    def test_after_an_error(self):
        task = Task(model=self.Fragile(), data=(X, LABELS), criterion="cross_entropy")
        risk = Risk(task, materialise(task.data))
        before = {k: v.clone() for k, v in task.model.state_dict().items()}
        rays = [Ray(vector=torch.ones(risk.n, dtype=torch.float64))]
        units = MemoryUnits()
        with pytest.raises(TaskError, match="too far"):
            evaluate(
                risk, Surface(risk, rays), np.array([[0.0], [9.0]]), units=units, progress=silent
            )
        after = task.model.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert units.get("points")["done"].tolist() == [True, False]


class TestFiles:
    @pytest.mark.parametrize("along", [("eigen:1",), ("random", "eigen:-1")], ids=" ".join)
    def test_a_stored_result_is_what_was_measured(self, along, tmp_path):
        paths = [saved(tmp_path, f"step_{k}", classifier(k)) for k in (2, 3)]
        found = sliced(classifier(), options=options(*along, points=3), trajectory=paths)
        save(tmp_path / "a.h5", found)
        stored = load(tmp_path / "a.h5")
        assert repr(stored.directions) == repr(found.directions)  # NaN is equal there.
        assert stored.trajectory == found.trajectory
        for name in ("x", "y", "loss", "excess_loss", "quadratic", "eigenvectors"):
            assert np.array_equal(getattr(stored, name), getattr(found, name))
        assert np.array_equal(stored.known.at, found.known.at)
        assert [d.eigenvalue for d in stored.directions][-1] == found.directions[-1].eigenvalue


class TestKinds:
    """Frozen parameters, tied weights and low precision."""

    def test_frozen_parameters_go_along_to_another_checkpoint(self, tmp_path):
        path = saved(tmp_path, "b", classifier(2))
        task = classifier(1)
        task.model[0].weight.requires_grad_(False)
        found = sliced(task, options=options(f"to:{path}", points=2))
        assert found.loss[-1] == loss_of(classifier(2))
        assert found.info.n_parameters == 19
        assert any("frozen" in note for note in found.info.warnings)

    def test_tied_weights_move_once(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).double()
        model[2].weight = model[0].weight
        task = Task(model=model, data=(X, LABELS), criterion="cross_entropy")
        found = sliced(task, options=options("random", points=3))
        vector = filter_normalised(ParameterSpace(model), seed=0, index=0)
        moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() + vector
        torch.nn.utils.vector_to_parameters(moved, model.parameters())
        assert found.loss[-1] == pytest.approx(loss_of(task), rel=1e-12)

    def test_low_precision(self, tmp_path):
        paths = [saved(tmp_path, f"s{k}", classifier(k)) for k in (2, 3)]
        settings = Settings(dtype="bfloat16")
        found = sliced(
            classifier(1),
            settings=settings,
            options=options("pca:1", "random", points=3),
            trajectory=paths,
        )
        assert np.isfinite(found.excess_loss).all()
