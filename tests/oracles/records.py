"""Made-up records of runs."""

from __future__ import annotations

from landscape.results import RunInfo


def made_up_run(step: int | None, *, config: dict | None = None, **changes: object) -> RunInfo:
    """The record of a run on the checkpoint of that step."""
    label = f"step_{step}.pt" if step is not None else "model.pt"
    options = {"loss": "task", "params": [], "examples": None, "set": {}, "units": "nats"}
    values = {
        "schema": "landscape/1",
        "command": "hessian",
        "argv": (),
        "config": {**options, **(config or {})},
        "key": f"key {step}",
        "seed": 0,
        "versions": {},
        "device": "cpu",
        "dtype": "float64",
        "task": "made-up",
        "task_sha256": "t",
        "checkpoint": label,
        "checkpoint_sha256": ascii((step, changes.get("checkpoint", label))),
        "step": step,
        "n_parameters": 6,
        "n_examples": 10,
        "loss": 1 / (1 + (step or 0)),
        "gradient_norm": 0.5,
        "status": "complete",
        "started": "",
        "finished": "",
        "wall_seconds": 1.5,
        "n_matvecs": 9,
        "n_forward": 1,
        "n_gradient": 1,
        "warnings": (),
        **changes,
    }
    return RunInfo(**values)
