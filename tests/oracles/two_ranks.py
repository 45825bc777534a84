"""Two processes that save a model as ``torch.distributed.checkpoint`` does: run as a program.

Arguments: rank, meeting file, and the folder for ``bare``, a state dict by itself, and ``wrapped``,
one beside an optimiser's state.
"""

import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def model():
    """The same network in every process: uneven rows, so that the shards differ in size."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


def main(rank, meeting, folder):
    """Take part as one rank."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    state = {}
    for name, tensor in model().state_dict().items():
        # Weights in rows, one bias in rows, the other in every process.
        place = Replicate() if name == "2.bias" else Shard(0)
        state[name] = distribute_tensor(tensor, mesh, [place])
    moments = {name: torch.ones(tensor.shape) for name, tensor in model().state_dict().items()}
    optimiser = {"state": moments, "lr": 0.1}
    wrapped = {"model": state, "optim": optimiser, "step": 40, "epoch": 2}
    dcp.save(state, checkpoint_id=f"{folder}/bare")
    dcp.save(wrapped, checkpoint_id=f"{folder}/wrapped")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
