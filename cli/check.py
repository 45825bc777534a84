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
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="gpus=P,...",
            help="Predict memory and time over P processes: gpus=64,parameters=7e9,memory=80GB.",
        ),
    ] = None,
) -> None:
    """Is the loss deterministic, smooth and differentiable twice; and what does a product cost.

    Evaluates the loss twice, tests the symmetry of Hessian-vector products, names non-smooth
    functions, and prints the time of one product and the memory of the kept gradient graphs.
    With --plan also predicts what a spectrum costs over many processes. Writes no file.
    """
    from landscape.checkpoint import read_checkpoint
    from landscape.checks import check_risk
    from landscape.cost import parse_scenario
    from landscape.errors import TaskError
    from landscape.folders import one_checkpoint
    from landscape.hessian import HessianOptions
    from landscape.runs import HessianRun
    from landscape_cli.measuring import prepare_task, settings_from
    from landscape_cli.render_plan import plan_table, plan_values, planned

    scenario = None if plan is None else parse_scenario(plan)
    settings = settings_from(common)
    path = one_checkpoint(checkpoint, "check")
    resolved, data = prepare_task(common, settings, [path])
    REPORT.checkpoint = str(path)
    stored = read_checkpoint(
        path, weights_key=common.weights_key, unsafe_pickle=common.unsafe_pickle
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
    values = dataclasses.asdict(report)
    prediction = None
    if scenario is not None:
        number = _number_bytes(run.config["dtype"])
        prediction = planned(report, scenario, number)
        values["plan_over_processes"] = plan_values(scenario, prediction[1])
    REPORT.add(
        {
            "file": None,
            "checkpoint": str(path),
            "step": stored.step,
            "status": "complete" if report.symmetric else "failed",
            "config": run.config,
            "values": values,
            "warnings": warnings,
        }
    )
    REPORT.table(_table(report, printable(path), run.config))
    if scenario is not None and prediction is not None:
        REPORT.table(plan_table(prediction[0], scenario, prediction[1]))
    if not report.symmetric:
        raise TaskError(
            f"Hessian-vector products are not symmetric: |u'Hv - v'Hu| is {report.asymmetry:.1e} "
            f"relative to its terms, expected at most {report.rounding:.1e}. A custom autograd "
            "function with a wrong or missing second derivative is the usual cause"
        )


def _table(report: Any, title: str, config: dict[str, Any]) -> Any:
    from rich.table import Table

    from landscape.spectrum import EXACT_LIMIT
    from landscape_cli.render_amounts import amount_of_bytes, amount_of_time

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
    table.add_row("forward pass", amount_of_time(report.forward_seconds))
    table.add_row("gradient", amount_of_time(report.gradient_seconds))
    table.add_row(
        "one product",
        f"{amount_of_time(product)}, {product / max(report.gradient_seconds, 1e-9):.1f} gradients "
        f"({config['dtype']}; the first one {amount_of_time(report.build_seconds)})",
    )
    table.add_row(
        "gradient graphs",
        f"{amount_of_bytes(plan.graph_bytes)} per micro-batch; {plan.n_kept} of {plan.n_batches} "
        f"kept within {amount_of_bytes(plan.budget)}"
        + (f", {report.rebuilt} rebuilt for every product" if report.rebuilt else ""),
    )
    vector = report.n_parameters * _number_bytes(config["dtype"])
    table.add_row("Krylov basis", f"{amount_of_bytes(vector)} per vector")
    if report.n_parameters <= EXACT_LIMIT:
        whole = amount_of_time(report.n_parameters * product)
        table.add_row("expect", f"the whole matrix in at most {whole}, before its eigenvalues")
    else:
        top10, density = amount_of_time(60 * product), amount_of_time(800 * product)
        table.add_row("expect", f"top 10 in about {top10}, density in about {density}")
    return table


def _number_bytes(dtype: str) -> int:
    """Bytes of a number of a Krylov vector, which bfloat16 products have in float32."""
    return 8 if dtype == "float64" else 4


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "es")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "check",
        epilog=examples(
            "landscape check model.safetensors --task digits-mlp",
            "landscape check model.pt --task my_task.py --dtype float32 --batch-size 256",
            "landscape check model.pt --task my_task.py --plan gpus=64,examples=1e6,memory=80GB",
        ),
    )(check)
