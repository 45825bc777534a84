"""Groups of parameters: by layer, block, head and patterns, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from landscape import Task
from landscape.data import materialise
from landscape.errors import UsageError
from landscape.flat.subject import Subject
from landscape.modules.groups import group_parameters
from landscape.modules.heads import check_heads
from landscape.modules.patterns import GroupPatterns
from landscape.params import ParameterSpace
from landscape.risk import Risk
from landscape.tasks._transformer import Transformer


def transformer(heads: int = 2, layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return Transformer(
        vocabulary=5,
        outputs=5,
        context=4,
        d_model=8,
        heads=heads,
        d_mlp=6,
        layers=layers,
        activation=nn.Tanh,
        layer_norm=True,
    )


class Grouped(nn.Module):
    """Four query heads that share two heads of keys and values; order of q, k, v as asked."""

    def __init__(self, order: str = "qkv") -> None:
        super().__init__()
        self.num_heads = 4
        self.order = order
        self.q_proj = nn.Linear(8, 8)
        self.k_proj = nn.Linear(8, 4)
        self.v_proj = nn.Linear(8, 4)
        self.o_proj = nn.Linear(8, 8)

    def forward(self, x):
        q = self.q_proj(x).unflatten(-1, (4, 2)).transpose(1, 2)
        k, v = (m(x).unflatten(-1, (2, 2)).transpose(1, 2) for m in (self.k_proj, self.v_proj))
        if self.order == "interleaved":  # Query heads 0 and 2 share key head 0.
            k, v = (t.repeat(1, 2, 1, 1) for t in (k, v))
        else:
            k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        return self.o_proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


def partition(found, n):
    named = torch.cat(found.indices)
    assert named.sort().values.tolist() == list(range(n))
    assert all((index.diff() > 0).all() for index in found.indices)


def checked(model, inputs, params=()):
    """Groups by head, verified on the model's outputs."""
    found = group_parameters("head", model, params)
    task = Task(
        model=model,
        data=(inputs, torch.zeros(len(inputs), *model(inputs).shape[1:])),
        criterion="mse",
    )
    risk = Risk(task, materialise(task.data), params=params, dtype=torch.float32)
    check_heads(Subject.of(risk, examples=2), found.attentions)
    return found


def test_by_layer_and_block():
    model = transformer()
    n = ParameterSpace(model).n
    layers = group_parameters("layer", model)
    assert layers.names[:3] == ("tokens", "positions", "blocks.0.attention_norm")
    partition(layers, n)
    assert sum(map(len, layers.positions)) == len(list(model.parameters()))
    blocks = group_parameters("block", model)
    assert blocks.names == ("tokens", "positions", "blocks.0", "blocks.1", "norm", "unembedding")
    partition(blocks, n)
    some = group_parameters("block", model, ["blocks.*.weight"])
    assert some.names == ("blocks.0", "blocks.1")
    partition(some, ParameterSpace(model, ["blocks.*.weight"]).n)


def test_by_head_of_a_fused_map():
    model = transformer()
    found = group_parameters("head", model)
    partition(found, ParameterSpace(model).n)
    heads = [name for name in found.names if ".head." in name]
    assert heads == [f"blocks.{b}.attention.head.{h}" for b in (0, 1) for h in (0, 1)]
    # 3 maps of 8 by 4 and 4 columns of the output.
    assert {found.sizes[found.names.index(name)] for name in heads} == {4 * 8 * 4}
    space = ParameterSpace(model)
    marked = torch.zeros(space.n)
    marked[found.indices[found.names.index("blocks.0.attention.head.1")]] = 1
    qkv, out = (
        space.split(marked)[space.names.index(f"blocks.0.attention.{name}.weight")]
        for name in ("qkv", "out")
    )
    assert qkv.reshape(3, 2, 4, 8)[:, 1].all()
    assert not qkv.reshape(3, 2, 4, 8)[:, 0].any()
    assert out.reshape(8, 2, 4)[:, 1].all()
    assert not out.reshape(8, 2, 4)[:, 0].any()


def test_heads_are_verified_by_the_outputs():
    torch.manual_seed(1)
    inputs = torch.randn(3, 5, 8)
    sequence = nn.Sequential(Grouped(), nn.Linear(8, 2))
    found = checked(sequence, inputs)
    assert found.names[:2] == ("0.head.0", "0.head.1")
    # Biases of q, k and v belong to their heads, that of the output to its layer.
    assert found.sizes == [4 * 9 + 2 * 9 + 2 * 9 + 8 * 4] * 2 + [8, 18]
    with pytest.raises(UsageError, match="do not lie where they were looked for"):
        checked(nn.Sequential(Grouped("interleaved"), nn.Linear(8, 2)), inputs)


def test_torch_attention_and_selected_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.attention(x, x, x, need_weights=False)[0])

    torch.manual_seed(2)
    inputs = torch.randn(3, 5, 8)
    found = checked(Net(), inputs)
    assert found.names[:4] == tuple(f"attention.head.{h}" for h in range(4))
    partition(found, ParameterSpace(Net()).n)
    some = checked(Net(), inputs, params=("attention.in_proj_weight",))
    assert some.sizes == [48] * 4


@pytest.mark.parametrize(
    ("rest", "names"),
    [("one", ("left", "rest")), ("layer", ("left", "2", "4"))],
)
def test_by_patterns(rest, names):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    patterns = GroupPatterns(groups={"left": ("0.*",)}, rest=rest)
    found = group_parameters(patterns, model)
    assert found.names == names
    partition(found, ParameterSpace(model).n)


@pytest.mark.parametrize(
    ("groups", "rest", "words"),
    [
        ({"a": ("0.*",), "b": ("*.weight",)}, "", "parameter '0.weight' is in the groups 'a' and"),
        ({"a": ("0.*",)}, "", "parameter '2.weight' is in no group"),
        ({"a": ("9.*",)}, "one", "'9.*' of group 'a' matches no trainable parameter"),
        ({"a": ("*",)}, "", "in one group, 'a'"),
        ({"rest": ("0.*",)}, "one", "which is the name of a group"),
    ],
)
def test_wrong_patterns(groups, rest, words):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    with pytest.raises(UsageError, match=words.replace("*", r"\*")):
        group_parameters(GroupPatterns(groups=groups, rest=rest), model)


class Silent(nn.Module):
    """Looks like attention and does not say how many heads it has."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("model", "groups", "words"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "head", "no attention among"),
        (Silent(), "head", "does not say how many heads"),
        (nn.Sequential(nn.Linear(2, 2)), "layer", "in one group"),
        (nn.Linear(2, 2), "layers", "expected layer, block, head or a TOML file"),
    ],
)
def test_wrong_words(model, groups, words):
    with pytest.raises(UsageError, match=words):
        group_parameters(groups, model)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[groups", "is not TOML"),
        ("x = 1", "'x'; expected"),
        ("[groups]", "no groups"),
        ("[groups]\na = 3", "group 'a' is 3"),
        ("[groups]\na = []", "expected globs"),
        ("[groups]\na = ['*']\nrest = true", "expected it above"),
        ("rest = 'all'\n[groups]\na = ['*']", "rest is 'all'"),
    ],
)
def test_wrong_files(tmp_path, text, words):
    path = tmp_path / "groups.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        GroupPatterns.read(path)


def test_files(tmp_path):
    path = tmp_path / "groups.toml"
    path.write_text('rest = "layer"\n[groups]\na = "0.*"\n"b c" = ["2.weight", "2.bias"]\n')
    found = GroupPatterns.read(path)
    assert found.groups == {"a": ("0.*",), "b c": ("2.weight", "2.bias")}
    assert found.rest == "layer"
    with pytest.raises(UsageError, match="cannot be read"):
        GroupPatterns.read(tmp_path / "none.toml")
