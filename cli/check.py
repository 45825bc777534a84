"""``landscape check``: can this checkpoint be measured, and what will it cost."""

import dataclasses
from typing import Annotated, Any

import typer

from landscape_cli.options import Common, examples, shared_options
from landscape_cli.reporting import REPORT, printable

__all__ = ["register"]


@shared_options(without=("products",))
def check(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint.")],
    common: Common,
) -> None:
    """Is the loss deterministic, smooth and differentiable twice; and what does a product cost.

    Evaluates the loss twice, tests the symmetry of Hessian-vector products, names non-smooth
    functions, and prints the time of one product and the memory of the kept gradient graphs.
    Writes no file.
    """
    from landscape.checkpoint import expand_checkpoints, read_checkpoint
    from landscape.checks import check_risk
    from landscape.errors import TaskError, UsageError
    from landscape.hessian import HessianOptions
    from landscape.runs import HessianRun
    from landscape_cli.measuring import prepare_task, settings_from

    settings = settings_from(common)
    paths = expand_checkpoints([checkpoint])
    if len(paths) != 1:
        raise UsageError(f"{checkpoint!r} matches {len(paths)} checkpoints; check takes one")
    resolved, data = prepare_task(common, settings, paths)
    REPORT.checkpoint = str(paths[0])
    stored = read_checkpoint(
        paths[0], weights_key=common.weights_key, unsafe_pickle=common.unsafe_pickle
    )
    run = HessianRun(
        resolved=resolved,
        data=data,
        checkpoint=stored,
        settings=settings,
        options=HessianOptions(),
    )
    report = check_risk(run.risk(), seed=settings.seed, graph_memory=settings.graph_memory)
    warnings = []
    if report.non_smooth:
        warnings.append(
            f"non-smooth functions: {', '.join(report.non_smooth)}. Second derivatives hold only "
            "within one linear piece; the GGN is the safer operator (--operator ggn)"
        )
    for warning in warnings:
        REPORT.warn(warning)
    REPORT.add(
        {
            "file": None,
            "checkpoint": str(paths[0]),
            "step": stored.step,
            "status": "complete" if report.symmetric else "failed",
            "config": run.config,
            "values": dataclasses.asdict(report),
            "warnings": warnings,
        }
    )
    REPORT.table(_table(report, printable(paths[0]), run.config))
    if not report.symmetric:
        raise TaskError(
            f"Hessian-vector products are not symmetric: |u'Hv - v'Hu| is {report.asymmetry:.1e} "
            f"relative to its terms, expected at most {report.rounding:.1e}. A custom autograd "
            "function with a wrong or missing second derivative is the usual cause"
        )


def _table(report: Any, title: str, config: dict[str, Any]) -> Any:
    from rich.table import Table

    from landscape.spectrum import EXACT_LIMIT

    table = Table(title=title, show_header=False, title_justify="left", box=None)
    table.add_column(style="bold")
    table.add_column()
    plan = report.plan
    product = report.product_seconds
    table.add_row("parameters", f"{report.n_parameters}")
    table.add_row("examples", f"{report.n_examples} in {_count(report.n_batches, 'micro-batch')}")
    table.add_row("loss", f"{report.loss:.6g}, twice the same")
    table.add_row("gradient norm", f"{report.gradient_norm:.3g}")
    table.add_row("symmetry", f"{report.asymmetry:.1e} (allowed {report.rounding:.1e})")
    table.add_row("smooth", "no: " + ", ".join(report.non_smooth) if report.non_smooth else "yes")
    table.add_row("forward pass", _time(report.forward_seconds))
    table.add_row("gradient", _time(report.gradient_seconds))
    table.add_row(
        "one product",
        f"{_time(product)}, {product / max(report.gradient_seconds, 1e-9):.1f} gradients "
        f"({config['dtype']}; the first one {_time(report.build_seconds)})",
    )
    table.add_row(
        "gradient graphs",
        f"{_bytes(plan.graph_bytes)} per micro-batch; {plan.n_kept} of {plan.n_batches} kept "
        f"within {_bytes(plan.budget)}"
        + (f", {report.rebuilt} rebuilt for every product" if report.rebuilt else ""),
    )
    element = 8 if config["dtype"] == "float64" else 4
    table.add_row("Krylov basis", f"{_bytes(report.n_parameters * element)} per vector")
    if report.n_parameters <= EXACT_LIMIT:
        whole = _time(report.n_parameters * product)
        table.add_row("expect", f"the whole matrix in at most {whole}, before its eigenvalues")
    else:
        top10, density = _time(60 * product), _time(800 * product)
        table.add_row("expect", f"top 10 in about {top10}, density in about {density}")
    return table


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "es")


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GB"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "check",
        epilog=examples(
            "landscape check model.safetensors --task digits-mlp",
            "landscape check model.pt --task my_task.py --dtype float32 --batch-size 256",
        ),
    )(check)
