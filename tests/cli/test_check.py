"""``landscape check``: what it says about losses that can, and cannot, be measured."""

from __future__ import annotations

import pytest

WRONG_SECOND_DERIVATIVE = """
class Twisted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        # Not the derivative of anything: its Jacobian is not symmetric.
        return grad * x.cos() * torch.roll(x, 1, 0)
"""


@pytest.fixture
def check(cli, tiny):
    def command(*arguments, **parts):
        task = tiny.write_task("checked.py", **parts) if parts else tiny.task
        return cli("check", tiny.checkpoint, "--task", task, *arguments)

    return command


def test_a_smooth_network(check, tiny):
    done = check()
    assert done.code == 0
    for word in ("twice the same", "12 in 1 micro-batch", "one product", "gradient graphs"):
        assert word in done.out
    assert "warning" not in done.err
    assert {p.name for p in tiny.folder.iterdir()} == {"task.py", "step_7.safetensors"}


def test_json(check, tiny):
    done = check("--json", "--batch-size", "5")
    (result,) = done.document["results"]
    assert (result["file"], result["checkpoint"], result["step"]) == (None, str(tiny.checkpoint), 7)
    values = result["values"]
    assert (values["n_parameters"], values["n_examples"], values["n_batches"]) == (26, 12, 3)
    assert values["asymmetry"] <= values["rounding"]
    assert values["non_smooth"] == []
    assert values["plan"]["n_batches"] == 3


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"model": "network(nn.ReLU)"}, "relu"),
        ({"more": "forward=lambda m, b: m[2](F.relu(m[0](b[0])))"}, "relu"),
        ({"more": "forward=lambda m, b: m(b[0]).abs()"}, "abs"),
        ({"more": "forward=lambda m, b: m(b[0]).clamp(min=0)"}, "clamp"),
    ],
    ids=["module", "functional", "abs", "clamp"],
)
def test_non_smooth_functions_are_named(check, parts, name):
    done = check(**parts)
    assert done.code == 0
    assert f"warning: non-smooth functions: {name}" in done.err
    assert "--operator ggn" in done.err
    assert f"no: {name}" in done.out
    values = check("--json", **parts).values
    assert values["non_smooth"] == [name]


def test_a_wrong_second_derivative_is_found(check, tiny):
    done = check(
        "--json",
        extra=WRONG_SECOND_DERIVATIVE,
        more="forward=lambda m, b: m[2](Twisted.apply(m[0](b[0])))",
    )
    assert done.code == 3
    (error,) = done.document["errors"]
    assert "not symmetric" in error["message"]
    assert error["checkpoint"] == str(tiny.checkpoint)
    assert done.document["results"][0]["status"] == "failed"
