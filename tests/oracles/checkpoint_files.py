"""Checkpoint files that tests write, good and bad."""

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from landscape.checkpoint import Checkpoint, read_checkpoint
from landscape.errors import CheckpointError

FORMATS = ("safetensors", "torch-zip", "torch-legacy")


def make_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


def save(path, value, form="torch-zip", **options):
    if form == "safetensors":
        save_file({k: v.contiguous().clone() for k, v in value.items()}, path)
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "torch-zip", **options)
    return path


def in_memory(tensors, **fields):
    defaults = {
        "path": "memory",
        "format": "safetensors",
        "metadata": {},
        "sha256": "0" * 64,
        "step": None,
        "weights_key": None,
        "unsafe_pickle": False,
    }
    return Checkpoint(tensors=tensors, **(defaults | fields))


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def refusal(path, **options):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, **options)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "expected" in message
    assert message.isprintable(), "one line, nothing that a terminal would obey"
    return message


class Opens:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


class Runs:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call
