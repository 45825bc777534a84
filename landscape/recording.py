"""Recording a linear function of one vector as a graph in which only that vector is variable.

The operations that PyTorch runs are recorded with the tensors they refer to. Those that do not
depend on the vector are evaluated once, and their results become constants of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["NotCompiledError", "Recorder", "compile_graph", "program_key"]


class NotCompiledError(Exception):
    """Why a function is not compiled."""


class Recorder:
    """Records a linear function and moves everything that does not depend on v out of it."""

    def __init__(self) -> None:
        self._pure: dict[str, fx.GraphModule] = {}

    def __call__(
        self, function: Callable[[Tensor], Tensor], vector: Tensor
    ) -> tuple[fx.Graph | None, list[Tensor]]:
        """The graph of ``(v, *constants) -> (product,)`` and the constants; None: always zero."""
        graph, captured = _lift(make_fx(function)(vector))
        key = program_key(graph, captured)
        if key not in self._pure:
            # Operations in place, which would change the constants, become pure ones.
            module = torch.func.functionalize(fx.GraphModule(nn.Module(), graph))
            with torch.no_grad():
                self._pure[key] = make_fx(module)(vector, *captured)
        return _fold(self._pure[key], captured)


def _lift(module: fx.GraphModule) -> tuple[fx.Graph, list[Tensor]]:
    """Turn the tensors that a recorded function refers to into further inputs."""
    lifted = fx.Graph()
    captured: list[Tensor] = []
    places: dict[int, fx.Node] = {}
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.find_nodes(op="placeholder"):
        copies[node] = lifted.placeholder("v")
    for node in module.graph.find_nodes(op="get_attr"):
        tensor = getattr(module, node.target)
        if id(tensor) not in places:
            places[id(tensor)] = lifted.placeholder(f"c{len(captured)}")
            captured.append(tensor.detach())
        copies[node] = places[id(tensor)]
    for node in module.graph.nodes:
        if node not in copies:
            copies[node] = lifted.node_copy(node, copies.__getitem__)
    return lifted, captured


def _fold(module: fx.GraphModule, captured: list[Tensor]) -> tuple[fx.Graph | None, list[Tensor]]:
    """Evaluate what does not depend on the first input; the rest as a graph, with its inputs."""
    first, *others = module.graph.find_nodes(op="placeholder")
    values: dict[fx.Node, Any] = dict(zip(others, captured, strict=True))
    rest = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {first: rest.placeholder("v")}
    dependent: list[fx.Node] = []
    with torch.no_grad():
        for node in module.graph.nodes:
            if node is first or node in values:
                continue
            if any(n is first or n in copies for n in node.all_input_nodes):
                copies[node] = node  # Replaced by its copy below.
                dependent.append(node)
            elif node.op == "get_attr":
                values[node] = getattr(module, node.target)
            elif node.op == "output":
                return None, []
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
    places: dict[Any, fx.Node] = {}
    constants: list[Tensor] = []
    for needed in dict.fromkeys(n for node in dependent for n in node.all_input_nodes):
        if needed in values:
            tensor: Tensor = values[needed]
            same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if same not in places:
                places[same] = rest.placeholder(f"k{len(constants)}")
                constants.append(tensor)
            copies[needed] = places[same]
    for node in dependent:
        if node.op == "output":
            rest.output((copies[node.args[0]],))  # type: ignore[index]
        else:
            _require_pure(node)
            copies[node] = rest.node_copy(node, copies.__getitem__)
    return rest, constants


def _require_pure(node: fx.Node) -> None:
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and (
        target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags
    ):
        raise NotCompiledError(f"the backward pass runs {target}, which is random or in place")


def program_key(graph: fx.Graph, constants: list[Tensor]) -> str:
    """What determines a compiled program."""
    layouts = [(tuple(t.shape), t.stride(), t.dtype, str(t.device)) for t in constants]
    code = graph.python_code("self").src
    return f"{code}\n{layouts}\n{torch.get_num_threads()}"


def compile_graph(graph: fx.Graph, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Compile a graph for inputs of these shapes."""
    from torch import _inductor

    # On a CPU, worker processes would outlive the compilation.
    options = {"compile_threads": 1} if inputs[0].device.type == "cpu" else None
    with torch.no_grad():
        module = fx.GraphModule(nn.Module(), graph)
        program: Callable[..., Any] = _inductor.compile(module, list(inputs), options=options)
    return program
