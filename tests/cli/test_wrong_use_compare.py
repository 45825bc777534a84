"""Wrong comparisons end with their exit codes and one message that names the cause."""

from __future__ import annotations

import pytest
from wrong_uses import Use, assert_refused, tensors

COMPARE = "compare {ckpt} --task {task} -o {tmp}/out"


def option(name: str, arguments: str, *words: str) -> Use:
    """A comparison with a copy of the checkpoint, and a wrong option."""
    line = f"compare {{ckpt}} {{tmp}}/b.safetensors --task {{task}} -o {{tmp}}/out {arguments}"
    return Use(name, line, 2, words, files={"b.safetensors": tensors()})


def ablation(name: str, text: str, *words: str, more: str = "") -> Use:
    """A comparison with a copy that is ablated in a wrong way."""
    return Use(name, f"{COMPARE} --ablate {text}{more}", 2, words)


VOLUME = " --volume behaviour"
TWICE = ("change the same units", "Leave one out")
USES = [
    Use("nothing", COMPARE, 2, ("nothing to compare with", "--ablate")),
    ablation("twice", "0:0-2=zero", *TWICE, more=" --ablate 0:2=mean"),
    ablation("twice-as-a-whole", "0:1=zero", *TWICE, more=" --ablate 0=mean"),
    Use(
        "b-missing",
        "compare {ckpt} {tmp}/none.pt --task {task} -o {tmp}/out",
        2,
        ("none.pt", "no such file"),
    ),
    Use(
        "b-several",
        "compare {ckpt} {tmp}/b*.safetensors --task {task} -o {tmp}/out",
        2,
        ("matches 2 checkpoints", "B takes one", "b1.safetensors"),
        files={"b1.safetensors": tensors(), "b2.safetensors": tensors()},
    ),
    Use(
        "b-of-another-network",
        "compare {ckpt} {tmp}/b.safetensors --task {task} -o {tmp}/out",
        3,
        ("b.safetensors", "does not fit the model", "2.bias"),
        files={"b.safetensors": tensors(without="2.bias")},
        at="{ckpt}",
    ),
    Use(
        "b-nan",
        "compare {ckpt} {tmp}/b.safetensors --task {task} -o {tmp}/out",
        4,
        ("1 NaN", "2.weight"),
        files={"b.safetensors": tensors(value=float("nan"))},
        at="{ckpt}",
    ),
    Use(
        "no-law",
        "compare {ckpt} --task {tmp}/wrong.py --ablate 1=zero -o {tmp}/out",
        2,
        ("names no law", "cross_entropy"),
        task={"criterion": "lambda outputs, batch: F.cross_entropy(outputs, batch[1])"},
    ),
    ablation("ablate-way", "1=none", "--ablate 1=none", "zero, mean or resample"),
    ablation("ablate-range", "1:3-1=zero", "the range 3-1"),
    ablation("ablate-units", "1:a=zero", "the units are 'a'"),
    ablation("ablate-module", "9=zero", "no module '9'", "expected one of"),
    ablation("ablate-unit", "1:4=zero", "no unit 4", "0 to 3"),
    ablation("ablate-parameter", "weights:1.w=zero", "no parameter '1.w'"),
    ablation("ablate-spaces", "1=zero", "ablated network", more=" --eigenspaces 2"),
    ablation("ablate-volume", "1=resample", "zero or mean", more=VOLUME),
    option("bootstrap", "--bootstrap 1", "--bootstrap 1", "at least 2"),
    option("eigenspaces-negative", "--eigenspaces -1", "--eigenspaces -1", "from 0"),
    option("eigenspaces-many", "--eigenspaces 99", "--eigenspaces 99", "26"),
    option("over", "--over tokens", "--over tokens", "examples or terms"),
    option("points", "--points 2", "--points 2", "from 3"),
    option("align", "--align all", "--align all", "weights, activations or none"),
    option("align-gone", "--no-align", "No such option", "--align"),
    option("plot", "--plot f.gif", "--plot f.gif", ".png"),
    option("volume", "--volume both", "--volume both", "behaviour, task or relabelled"),
    option("volume-mean", f"{VOLUME} --mean anchor", "--mean anchor", "a prior of its own"),
    option("volume-no-mean", f"{VOLUME} --mean x.pt", "--mean 'x.pt'", "no such file"),
    option("volume-sigma", f"{VOLUME} --sigma -1", "--sigma -1", "positive"),
    option("volume-cutoff", f"{VOLUME} --cutoff 0", "--cutoff 0", "positive"),
    option("volume-error", f"{VOLUME} --error 0", "--error 0", "positive"),
    option("sigma-alone", "--sigma 1", "--sigma", "expected --volume"),
    option("cutoff-alone", "--cutoff 0.1", "--cutoff", "expected --volume"),
]


def test_no_name_is_there_twice():
    assert len({use.name for use in USES}) == len(USES)


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
def test_wrong_use(use, tiny, cli, texts, draw):
    assert_refused(use, tiny, cli, texts, draw)
