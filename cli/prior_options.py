"""Options of the commands that measure under a prior, declared once."""

from typing import Annotated

import typer

__all__ = ["PRIOR_PANEL", "CutoffOption", "DryRunOption", "MeanOption", "SigmaOption"]

PRIOR_PANEL = "Prior"

MeanOption = Annotated[
    str | None,
    typer.Option(
        metavar="zero|anchor|init|CKPT",
        rich_help_panel=PRIOR_PANEL,
        help="Centre: zero (default; init with --sigma init), the checkpoint itself, the "
        "initialiser's mean, another checkpoint.",
    ),
]
SigmaOption = Annotated[
    str | None,
    typer.Option(
        metavar="rms|init|layer-rms|FLOAT",
        rich_help_panel=PRIOR_PANEL,
        help="Standard deviation: root mean square of the weights (default; of the first "
        "checkpoint, so that several compare), the initialiser's, that of every tensor, or a "
        "number.",
    ),
]
CutoffOption = Annotated[
    str,
    typer.Option(
        metavar="E[,E...]|LO:HI:COUNT",
        rich_help_panel="Measurement",
        help="Largest excess loss that counts as the same basin, per example; several in one "
        "run, such as 1e-4:1:13.",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        rich_help_panel="Measurement",
        help="Show the prior of every tensor and what would be done; measure nothing.",
    ),
]
