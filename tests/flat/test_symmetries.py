"""Known null counts: of the Jacobian, of every symmetry, and nothing left over."""

from __future__ import annotations

import flat_cases as fc
import numpy as np
import pytest
import torch
from flat_cases import Case, draws, generic, mlp, with_units
from torch import nn

from landscape.errors import UsageError
from landscape.flat.declared import DeclaredSymmetry
from landscape.flat.exact import exact_counts, symmetry_table
from landscape.flat.family import null_rows

Identity, Tanh = nn.Identity, nn.Tanh


def vectors(d, n=120):
    return lambda: draws(n, d)


def sequences(d, t, n=60):
    return lambda: draws(n, t, d)


def plain_norm(d):
    return nn.LayerNorm(d, elementwise_affine=False, eps=0)


def batch_norm():
    model = generic(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)))
    model[1].running_mean.copy_(draws(6))
    model[1].running_var.copy_(draws(6).square() + 0.5)
    return model.eval()


def cnn():
    return generic(
        nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
    )


def tokens():
    return torch.randint(7, (60, 4), generator=torch.Generator().manual_seed(0))


CASES = {
    "relu": Case(
        build=lambda: with_units(generic(mlp(5, 6, 3))),
        inputs=vectors(5),
        null=6,
        parts={"relu rescaling": 6},
    ),
    "relu, two layers and softmax": Case(
        build=lambda: with_units(generic(mlp(5, 6, 4, 3), seed=8), every=True),
        inputs=vectors(5),
        null=10 + 5,
        parts={"relu rescaling": 10, "softmax shift": 5},
        softmax=3,
    ),
    "leaky relu": Case(
        build=lambda: with_units(generic(mlp(5, 6, 3, activation=nn.LeakyReLU))),
        inputs=vectors(5),
        null=6,
        parts={"leaky_relu rescaling": 6},
    ),
    "prelu": Case(
        # A unit's slope is no further freedom.
        build=lambda: with_units(generic(mlp(5, 6, 3, activation=lambda: nn.PReLU(6)))),
        inputs=vectors(5),
        null=6,
        parts={"prelu rescaling": 6},
    ),
    "dead units": Case(
        build=lambda: with_units(generic(mlp(5, 6, 3)), dead=2),
        inputs=vectors(5),
        null=4 + 2 * (5 + 1 + 3),
        parts={"relu rescaling": 4, "dead relu units": 18},
    ),
    "units that are always on": Case(
        build=lambda: with_units(generic(mlp(5, 6, 4)), on=3),
        inputs=vectors(5),
        null=3 + 3**2 + 3,
        parts={"relu rescaling": 3, "relu units that never switch": 12},
    ),
    "more of them than outputs": Case(
        # A linear pair of rank 3 with 4 hidden units: 4 * (5 + 1 + 3) - 3 * (5 + 1 + 3 - 3), and 3
        # of the constants that a bias takes.
        build=lambda: with_units(generic(mlp(5, 6, 3)), on=4),
        inputs=vectors(5),
        null=2 + 4 * 9 - 3 * 6 + 3,
        parts={"relu rescaling": 2, "relu units that never switch": 21},
    ),
    "leaky units on either side": Case(
        build=lambda: with_units(generic(mlp(5, 6, 4, activation=nn.LeakyReLU)), dead=2, on=1),
        inputs=vectors(5),
        null=3 + 3**2 + 3,
        parts={"leaky_relu rescaling": 3, "leaky_relu units that never switch": 12},
    ),
    "tanh": Case(
        build=lambda: generic(mlp(5, 6, 4, 3, activation=Tanh)), inputs=vectors(5), null=0
    ),
    "softmax shift": Case(
        build=lambda: generic(mlp(5, 6, 4, 3, activation=Tanh)),
        inputs=vectors(5),
        null=4 + 1,
        parts={"softmax shift": 5},
        softmax=3,
    ),
    "linear pair": Case(
        build=lambda: generic(mlp(5, 3, 4, activation=Identity)),
        inputs=vectors(5),
        null=3**2 + 3,
        parts={"linear pair": 9, "bias shift": 3},
    ),
    "linear pair without biases": Case(
        build=lambda: generic(mlp(5, 3, 4, activation=Identity, bias=False)),
        inputs=vectors(5),
        null=3**2,
        parts={"linear pair": 9},
    ),
    "deep linear 5-4-3-5": Case(
        build=lambda: generic(mlp(5, 4, 3, 5, activation=Identity, bias=False)),
        inputs=vectors(5),
        null=26,
        parts={"linear pair": 25, "linear units that nothing reads": 1},
    ),
    "deep linear 5-8-5": Case(
        build=lambda: generic(mlp(5, 8, 5, activation=Identity, bias=False)),
        inputs=vectors(5),
        null=55,
        parts={"linear pair": 55},
    ),
    "deep linear 5-4-4-2-5": Case(
        # What the third map does not read is seen through the second: n - r (M + N - r).
        build=lambda: generic(mlp(5, 4, 4, 2, 5, activation=Identity, bias=False)),
        inputs=vectors(5),
        null=54 - 2 * (5 + 5 - 2),
        parts={"linear pair": 36, "linear units that nothing reads": 2},
    ),
    "layer norm and linear map": Case(
        build=lambda: generic(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4))),
        inputs=vectors(6),
        null=2 * 6 + 4,
        parts={
            "layer_norm scale": 6,
            "layer_norm shift": 6,
            "inputs that never vary by construction": 4,
        },
    ),
    "layer norm and linear map without a bias": Case(
        # What the map reads has a product of 1 with some vector, which stands for a bias.
        build=lambda: generic(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4, bias=False))),
        inputs=vectors(6),
        null=2 * 6,
        parts={"layer_norm scale": 6, "layer_norm shift": 6},
    ),
    "layer norm and attention without biases": Case(
        build=lambda: generic(
            nn.Sequential(nn.LayerNorm(6), fc.GroupedAttention(6, 2, 1, 2, bias=False))
        ),
        inputs=sequences(6, 5, 60),
        null=6 + 6 + 4 + 4 + 2,
        parts={
            "layer_norm scale": 6,
            "layer_norm shift": 6,
            "attention QK": 4,
            "attention OV": 4,
            "attention key constant": 2,
        },
    ),
    "linear, plain layer norm, linear": Case(
        build=lambda: generic(nn.Sequential(nn.Linear(6, 8), plain_norm(8), nn.Linear(8, 3))),
        inputs=vectors(6, 200),
        null=32,
        parts={
            "layer_norm input scale": 1,
            "layer_norm input shift": 7,
            "inputs that never vary by construction": 3,
            "layer_norm rotation": 21,
        },
    ),
    "layer norm with eps": Case(
        # Its input's scale is no exact symmetry, and is refuted.
        build=lambda: generic(
            nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), Tanh(), nn.Linear(6, 4))
        ),
        inputs=vectors(5),
        null=6,
        parts={"layer_norm input shift": 6},
    ),
    "rms norm": Case(
        build=lambda: generic(
            nn.Sequential(nn.Linear(5, 6), nn.RMSNorm(6, eps=0), nn.Linear(6, 4))
        ),
        inputs=vectors(5),
        null=6 + 1 + 15,
        parts={"rms_norm scale": 6, "rms_norm input scale": 1, "rms_norm rotation": 15},
    ),
    "hand-written rms norm": Case(
        build=lambda: generic(nn.Sequential(nn.Linear(5, 6), fc.PlainRMSNorm(6), nn.Linear(6, 4))),
        inputs=vectors(5),
        null=6 + 1 + 15,
        parts={"rms_norm scale": 6, "rms_norm input scale": 1, "rms_norm rotation": 15},
    ),
    "batch norm": Case(
        build=batch_norm,
        inputs=vectors(5),
        null=18,
        parts={"batch_norm scale": 6, "relu rescaling": 6, "bias shift": 6},
    ),
    "convolutions": Case(
        build=cnn,
        inputs=lambda: draws(150, 1, 8, 8),
        null=3 + 4 + 17,
        parts={"relu rescaling": 7, "softmax shift": 17},
        softmax=3,
    ),
    "attention": Case(
        build=lambda: generic(fc.SelfAttention(6, 2, bias=False)),
        inputs=sequences(6, 4),
        null=36,
        parts={"attention QK": 18, "attention OV": 18},
    ),
    "attention with biases": Case(
        build=lambda: generic(fc.SelfAttention(6, 2, bias=True)),
        inputs=sequences(6, 4),
        null=48,
        parts={
            "attention QK": 18,
            "attention OV": 18,
            "attention key bias": 6,
            "attention value bias": 6,
        },
    ),
    "attention with one wide head": Case(
        build=lambda: generic(fc.SelfAttention(8, 1, bias=False)),
        inputs=sequences(8, 4),
        null=128,
        parts={"attention QK": 64, "attention OV": 64},
    ),
    "grouped queries": Case(
        build=lambda: generic(fc.GroupedAttention(8, 4, 2, 2)),
        inputs=sequences(8, 4),
        null=2 * 2 * 2**2,
        parts={"attention QK": 8, "attention OV": 8},
    ),
    "grouped queries with biases": Case(
        build=lambda: generic(fc.GroupedAttention(8, 4, 2, 2, bias=True)),
        inputs=sequences(8, 4),
        null=2 * 2 * 2**2 + 2 * 2 * 2,
        parts={"attention key bias": 4, "attention value bias": 4},
    ),
    "rotary, halves": Case(
        build=lambda: generic(fc.GroupedAttention(6, 2, 1, 4, rotary="halves")),
        inputs=sequences(6, 5, 40),
        null=4 + 16,
        parts={"attention QK, rotary": 4, "attention OV": 16},
    ),
    "rotary, neighbours, biases": Case(
        # A constant in the keys turns with its position: no symmetry.
        build=lambda: generic(fc.GroupedAttention(6, 2, 1, 4, rotary="pairs", bias=True)),
        inputs=sequences(6, 5, 40),
        null=4 + 16 + 4,
        parts={"attention QK, rotary": 4, "attention OV": 16, "attention value bias": 4},
    ),
    "fused and transposed attention": Case(
        build=lambda: generic(fc.FusedAttention(6, 2)),
        inputs=sequences(6, 4),
        null=48,
        parts={
            "attention QK": 18,
            "attention OV": 18,
            "attention key bias": 6,
            "attention value bias": 6,
        },
    ),
    "gated layer": Case(
        build=lambda: generic(fc.Gated(4, 5, 3)),
        inputs=vectors(4),
        null=5,
        parts={"gate rescaling": 5},
    ),
    "residual stream": Case(
        build=lambda: generic(fc.Residual(Identity)),
        inputs=vectors(3),
        null=49,
        parts={
            "linear residual stream": 25,
            "bias shift": 10,
            "inputs that never vary by construction": 8,
            "linear units that nothing reads": 6,
        },
    ),
    "residual stream with layer norms": Case(
        build=lambda: generic(fc.Residual(lambda: nn.LayerNorm(5, eps=0))),
        inputs=vectors(3),
        null=42,
        parts={
            "layer_norm scale": 10,
            "layer_norm shift": 10,
            "layer_norm input scale": 1,
            "layer_norm input shift": 9,
            "layer_norm rotation": 6,
            "inputs that never vary by construction": 6,
        },
    ),
    "embeddings": Case(
        build=lambda: generic(fc.Embedded()),
        inputs=tokens,
        null=3**2 + 3,
        parts={"linear residual stream": 9, "embedding shift": 3},
    ),
    "tied embeddings": Case(
        build=lambda: generic(fc.Embedded(tied=True)),
        inputs=tokens,
        null=3,  # A shift would move the logits.
        parts={"linear residual stream rotation": 3},
    ),
    "selected layers": Case(
        build=lambda: with_units(generic(mlp(5, 6, 4, 3), seed=8), every=True),
        inputs=vectors(5),
        null=6,
        parts={"relu rescaling": 6},
        params=("0.*", "2.*"),
    ),
    "selected weights": Case(
        # Frozen biases leave the matrices that fix them, and combinations of two layers' groups.
        build=lambda: generic(mlp(5, 6, 4, 3, activation=Identity)),
        inputs=vectors(5),
        null=48,
        parts={"linear pair": 42, "linear units that nothing reads": 3, "combined symmetries": 3},
        params=("*.weight",),
    ),
    "a constant input": Case(
        build=lambda: generic(mlp(5, 6, 3, activation=Tanh)),
        inputs=lambda: draws(120, 5) * torch.tensor([1, 1, 1, 1, 0.0]),
        null=6,
        parts={"inputs that never vary in the data": 6},
        data=6,
    ),
    "few active examples": Case(
        # The unit is on for two examples only: of its 6 parameters 4 are free, one for rescaling.
        build=lambda: with_units(generic(mlp(5, 6, 3)), rare=True),
        inputs=vectors(5),
        null=6 + 4,
        parts={"relu rescaling": 6, "weights that too few inputs reach": 4},
        data=4,
    ),
    "rows that are not looked up": Case(
        build=lambda: generic(fc.Embedded()),
        inputs=lambda: tokens() % 6,
        null=12 + 3,
        parts={"linear residual stream": 9, "rows that no example looks up": 3},
        data=3,
    ),
}


def measured(case, **options):
    risk = case.risk()
    counts = exact_counts(risk, hessian=False)
    return risk, counts, symmetry_table(risk, counts, **options)


@pytest.mark.parametrize("name", list(CASES))
def test_every_null_direction_is_counted_and_explained(name):
    case = CASES[name]
    _, counts, table = measured(case)
    for rank in counts.ranks.values():
        assert rank.null == case.null
        assert rank.looser == rank.rank == rank.tighter
        assert rank.gap > 1e5
    assert table.null == case.null
    assert (table.symmetry_total, table.data_total) == (case.null - case.data, case.data)
    assert table.unexplained == 0
    assert table.share.sum() == 0
    found: dict[str, int] = {}
    for entry in table.entries:
        assert entry.added <= entry.count
        assert entry.change <= 1e-10
        found[entry.name] = found.get(entry.name, 0) + entry.added
    assert {key: found.get(key) for key in case.parts} == case.parts
    assert sum(found.values()) == case.null
    assert sum(e.added for e in table.entries if e.by_data) == case.data


def test_micro_batches_change_nothing():
    case = CASES["dead units"]
    risk = case.risk(batch=17)
    counts = exact_counts(risk, hessian=False)
    table = symmetry_table(risk, counts)
    assert [(e.name, e.added) for e in table.entries] == [
        (e.name, e.added) for e in measured(case)[2].entries
    ]


def test_the_hessian_of_a_fitted_network_has_the_same_null_directions():
    case = CASES["linear pair"]
    counts = exact_counts(case.risk())  # With behaviour loss the Hessian is the GGN.
    assert {name: r.null for name, r in counts.ranks.items()} == dict.fromkeys(
        ("jacobian", "ggn", "hessian"), 12
    )
    assert counts.ranks["hessian"].negative == 0
    assert counts.participation["ggn"] == pytest.approx(counts.participation["hessian"], rel=1e-8)


def test_what_nothing_explains_is_left_over_with_its_layer():
    class Opaque(nn.Module):
        """A linear pair through a function that is not known."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 3, bias=False), nn.Linear(3, 4, bias=False)
            self.third = nn.Linear(5, 4)

        def forward(self, x):
            return self.second(torch.fft.ifft(torch.fft.fft(self.first(x))).real) + self.third(x)

    case = Case(build=lambda: generic(Opaque()), inputs=vectors(5), null=9 + 27 - 3)
    _, counts, table = measured(case)
    # The third map can take over whatever either of the others does.
    assert counts.ranks["jacobian"].null == 12 + 15
    assert table.unexplained == 12 + 15
    assert table.share.sum() == pytest.approx(1)
    assert dict(zip(table.layers, table.share, strict=True))["third"] > 0.1
    assert any("fft" in note for note in table.notes)


class TestDeclared:
    CASE = CASES["tanh"]

    @staticmethod
    def pair(name, act=None, rows=None):
        return DeclaredSymmetry(name=name, size=3 if act else 0, action=act, basis=rows)

    def test_a_wrong_action_is_caught(self):
        def act(parameters, c):
            weight = parameters["0.weight"]
            return {"0.weight": torch.cat([weight[:3] * c.exp()[:, None], weight[3:]])}

        _, _, table = measured(self.CASE, declared=[self.pair("scaling of tanh", act)])
        assert table.symmetry_total == 0
        assert table.entries == ()
        assert any("scaling of tanh" in note and "does not hold" in note for note in table.notes)

    def test_a_wrong_basis_is_caught(self):
        def rows(parameters):
            return {"0.weight": draws(2, 6, 5), "4.bias": draws(2, 3)}

        _, _, table = measured(self.CASE, declared=[self.pair("nonsense", rows=rows)])
        assert table.symmetry_total == 0
        assert any("nonsense" in note for note in table.notes)

    @pytest.mark.parametrize("kind", ["action", "basis"])
    def test_a_right_one_counts_in_the_union(self, kind):
        case = CASES["linear pair without biases"]
        # Three of the nine: scalings of the hidden units.

        def act(parameters, c):
            return {
                "0.weight": parameters["0.weight"] * c.exp()[:, None],
                "2.weight": parameters["2.weight"] / c.exp(),
            }

        def rows(parameters):
            unit = torch.eye(3, dtype=torch.float64)
            return {
                "0.weight": unit[:, :, None] * parameters["0.weight"],
                "2.weight": -unit[:, None, :] * parameters["2.weight"],
            }

        declared = self.pair("mine", act) if kind == "action" else self.pair("mine", rows=rows)
        _, _, table = measured(case, declared=[declared])
        assert table.symmetry_total == 9
        assert not any("mine" in note for note in table.notes)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({}, "exactly one"),
            ({"action": lambda p, c: {}, "basis": lambda p: {}}, "exactly one"),
            ({"action": lambda p, c: {}}, "size"),
        ],
    )
    def test_what_is_no_declaration_is_refused(self, options, text):
        with pytest.raises(UsageError, match=text):
            DeclaredSymmetry(name="x", **options)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"basis": lambda p: {"nobody": torch.zeros(1, 3)}}, "nobody"),
            ({"basis": lambda p: {"4.bias": torch.zeros(1, 7)}}, "expected"),
            ({"size": 1, "action": lambda p, c: {"4.bias": p["4.bias"] + 1 + c}}, "identity"),
        ],
    )
    def test_one_that_does_not_fit_the_model_is_refused(self, options, text):
        with pytest.raises(UsageError, match=text):
            measured(self.CASE, declared=[DeclaredSymmetry(name="x", **options)])


def test_symmetries_never_exceed_the_null_directions():
    # Two examples only: nearly everything is null, and most of it is nobody's symmetry.
    case = CASES["layer norm and linear map"]
    risk = case.risk(examples=2)
    counts = exact_counts(risk, hessian=False)
    table = symmetry_table(risk, counts)
    assert table.symmetry_total + table.data_total + table.unexplained == table.null
    assert table.symmetry_total <= table.null == counts.ranks["jacobian"].null
    assert np.isfinite(table.share).all()
    assert any("more examples" in note for note in table.notes)


def test_more_parameters_than_can_be_exact_are_refused():
    case = Case(build=lambda: generic(nn.Linear(70, 70)), inputs=vectors(70, 3), null=0)
    with pytest.raises(UsageError, match="4096"):
        exact_counts(case.risk())


@pytest.mark.parametrize("rows", [2, 4, 400_000])
def test_null_rows_of_wide_and_tall_matrices(rows):
    """Of 400 000 rows the left singular vectors would take 1280 GB."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
    matrix = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    matrix -= (matrix @ kernel.T) @ kernel / kernel.square().sum()
    found = null_rows(matrix)
    assert found.shape == (max(1, 4 - rows), 4)
    assert torch.allclose(found @ found.T, torch.eye(len(found), dtype=torch.float64), atol=1e-12)
    assert torch.linalg.matrix_norm(matrix @ found.T) < 1e-10 * torch.linalg.matrix_norm(matrix)
    assert torch.allclose(kernel @ found.T @ found, kernel, atol=1e-10)
