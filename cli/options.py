"""Options that all measuring commands share, declared once, and ``--config FILE.toml``."""

# No `from __future__ import annotations`: Typer reads the annotations of the dataclass below.
import dataclasses
import inspect
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from landscape.errors import UsageError
from landscape_cli.reporting import REPORT

__all__ = [
    "CheckpointsArgument",
    "Common",
    "DebugOption",
    "JsonOption",
    "LogDetOption",
    "PlotOption",
    "QuietOption",
    "ReplaceOption",
    "RunOption",
    "SetOption",
    "ThresholdOption",
    "complete_builtin",
    "examples",
    "require_run",
    "shared_options",
]

_DATA = "Task and data"
_RUN = "Computation"
_OUT = "Output"


def _config(context: typer.Context, path: Path | None) -> Path | None:
    """Use a TOML file as the source of defaults; the command line wins over it."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not TOML: {error}") from error
    own = values.pop(context.info_name or "", {})
    if not isinstance(own, dict):
        raise UsageError(
            f"--config {path}: {context.info_name} is {own!r}; expected a table of its options, "
            f"[{context.info_name}]"
        )
    sections = [k for k, v in values.items() if isinstance(v, dict) and k != "set"]
    commands = getattr(getattr(context.parent, "command", None), "commands", {})
    for section in sections:
        if section not in commands:
            raise UsageError(
                f"--config {path}: the section [{section}] is not a command; expected one of "
                f"{', '.join(sorted(commands))}"
            )
        del values[section]  # Another command's options.
    values |= own
    names = {_long_name(p): p for p in context.command.params if p.param_type_name == "option"}
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        option = key.replace("_", "-")
        if option == "unsafe-pickle":
            raise UsageError(
                f"--config {path}: unsafe-pickle can only be given on the command line, since it "
                "runs code from the checkpoint"
            )
        if option not in names or option == "config":
            raise UsageError(
                f"--config {path}: unknown option {key!r} for landscape {context.info_name}; "
                f"expected one of {', '.join(sorted(filter(None, names)))}"
            )
        parameter = names[option]
        if option == "set" and isinstance(value, dict):
            value = [f"{k}={_toml(v)}" for k, v in value.items()]
        if getattr(parameter, "multiple", False) and not isinstance(value, list):
            value = [value]
        defaults[str(parameter.name)] = value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _long_name(parameter: Any) -> str:
    return max((str(o).lstrip("-") for o in parameter.opts), key=len, default="")


def complete_builtin(incomplete: str) -> list[str]:
    """Names of tasks that can be trained and begin so, for the shell's tab completion."""
    from landscape.tasks import ADAPTERS, BUILTIN_TASKS

    entries = (BUILTIN_TASKS | ADAPTERS).values()
    return [e.name for e in entries if e.trainable and e.name.startswith(incomplete)]


def _complete_task(incomplete: str) -> list[str]:
    from landscape.tasks import ADAPTERS, BUILTIN_TASKS

    files = [str(p) for p in Path(".").glob("*.py")]
    names = [*BUILTIN_TASKS, *ADAPTERS, *files]
    return [name for name in names if name.startswith(incomplete)]


CheckpointsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="CKPT...", help="Checkpoints, folders of them, or quoted globs such as 'runs/*.pt'."
    ),
]
# Of commands that measure nothing; those that do have them in a panel of their help.
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No notices.")]
ReplaceOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace a file of other content.")
]
PlotOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel="Measurement", help="Also draw a figure."),
]
TaskOption = Annotated[
    str,
    typer.Option(
        "--task",
        "-t",
        metavar="TASK",
        autocompletion=_complete_task,
        rich_help_panel=_DATA,
        help="Task: a file (task.py or task.py:builder), a module (package.module:builder) or a "
        "built-in name (digits-mlp, hf-causal-lm). A task file is code and runs.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", rich_help_panel=_DATA, help="Argument of the task's builder."
    ),
]


LogDetOption = Annotated[
    list[float] | None,
    typer.Option(
        "--log-det", metavar="S", help="Show log det(I + S A) in nats, with its error (repeatable)."
    ),
]
ThresholdOption = Annotated[
    list[float] | None,
    typer.Option(
        "--threshold", metavar="T", help="Show the number of eigenvalues above T (repeatable)."
    ),
]


RunOption = Annotated[
    int | None,
    typer.Option("--run", min=1, metavar="N", help="Of landscape batch collect: only this run."),
]


def require_run(path: Path, kind: str, run: int | None) -> None:
    """Refuse ``--run`` for a file that has no runs.

    Raises:
        UsageError: it was given for another file than one of ``landscape batch collect``.
    """
    if run is not None and kind != "sweep":
        raise UsageError(
            f"--run {run}: {path} is a {kind}, which has no runs; expected a file of landscape "
            "batch collect. Leave --run out"
        )


@dataclass(frozen=True, kw_only=True)
class Common:
    """The shared options, as the command line gives them."""

    task: TaskOption
    set_: SetOption = None
    loss: Annotated[
        str,
        typer.Option(
            metavar="task|behaviour|relabelled",
            rich_help_panel=_DATA,
            help="task: the criterion. behaviour: divergence from the checkpoint's own outputs. "
            "relabelled: the criterion with the checkpoint's predictions as targets.",
        ),
    ] = "task"
    params: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            rich_help_panel=_DATA,
            help="Only parameters whose name matches this glob, such as '*.weight' (repeatable).",
        ),
    ] = None
    examples: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=_DATA, help="A random subset of N examples (--data-seed)."
        ),
    ] = None
    data_seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            rich_help_panel=_DATA,
            help="Seed of that subset, which --seed does not change.",
        ),
    ] = 0
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_RUN,
            help="Largest micro-batch (default: the task's, else 1024 examples); changes results "
            "only by rounding.",
        ),
    ] = None
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda|cuda:1|mps", rich_help_panel=_RUN, help="auto: cuda, else cpu."
        ),
    ] = "auto"
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="float32|float64|bfloat16",
            rich_help_panel=_RUN,
            help="Precision of the products (default: float64; float32 for eigenvalues by "
            "Lanczos, hessian --method lanczos).",
        ),
    ] = None
    graph_memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            rich_help_panel=_RUN,
            help="Memory for kept gradient graphs (default: a quarter of the free memory, half "
            "on a GPU). 0 rebuilds every graph for every product.",
        ),
    ] = None
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            rich_help_panel=_RUN,
            help="Compile the Hessian's products: pays back after thousands of "
            "them. Checked against the plain product, which it falls back to with a notice.",
        ),
    ] = False
    products: Annotated[
        str | None,
        typer.Option(
            metavar="float32",
            rich_help_panel=_RUN,
            help="float32: Lanczos with float32 products, about half the cost; the eigenpairs are "
            "verified with float64 ones. For residuals above a few float32 roundings.",
        ),
    ] = None
    seed: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=_RUN, help="Seed of every random stream.")
    ] = 0
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS|Nmv|Ngrad",
            rich_help_panel=_RUN,
            help="Stop after so many seconds (60), matrix-vector products (2000mv) or, when "
            "annealing, gradients (1e6grad) and report; a larger budget continues. Exact paths are "
            "not cut short.",
        ),
    ] = None
    weights_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            rich_help_panel=_DATA,
            help="Where the weights are inside the checkpoint, such as model or ema.model.",
        ),
    ] = None
    unsafe_pickle: Annotated[
        bool,
        typer.Option(
            "--unsafe-pickle",
            rich_help_panel=_DATA,
            help="Load a checkpoint that may run code. Only for files you trust.",
        ),
    ] = False
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", rich_help_panel=_OUT, help="Folder of the result files."
        ),
    ] = Path("results")
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", rich_help_panel=_OUT, help="Compute again what is complete."),
    ] = False
    json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=_OUT, help="One JSON document on stdout."),
    ] = False
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", rich_help_panel=_OUT, help="No notices and no progress bar."),
    ] = False
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", rich_help_panel=_OUT, help="Exit with 4 when something is not converged."
        ),
    ] = False
    debug: Annotated[
        bool, typer.Option("--debug", rich_help_panel=_OUT, help="Show tracebacks.")
    ] = False
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            is_eager=True,
            callback=_config,
            rich_help_panel=_OUT,
            help="Defaults for these options; the command line wins.",
        ),
    ] = None
    flush_seconds: Annotated[float, typer.Option(hidden=True)] = 30.0


def shared_options(
    *, without: tuple[str, ...] = (), **defaults: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Replace a command's parameter ``common: Common`` by the fields of :class:`Common`.

    Args:
        without: fields that the command does not offer.
        defaults: of the command, where they differ from the others'.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(function, include_extras=True)
        shared = get_type_hints(Common, include_extras=True)
        own = [
            p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for p in inspect.signature(function).parameters.values()
            if p.name != "common"
        ]
        offered = [f for f in dataclasses.fields(Common) if f.name not in without]
        fields = [
            inspect.Parameter(
                f.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty
                if f.default is dataclasses.MISSING
                else defaults.get(f.name, f.default),
                annotation=shared[f.name],
            )
            for f in offered
        ]

        def command(**values: Any) -> Any:
            common = Common(**{f.name: values.pop(f.name) for f in offered})
            # A configuration file may ask for these too.
            REPORT.use_json(common.json)
            REPORT.quiet, REPORT.debug = common.quiet, common.debug
            return function(common=common, **values)

        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature([*own, *fields])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in [*own, *fields]}
        return command

    return decorate


def examples(*lines: str) -> str:
    """An epilog of examples for --help, one command a line."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"$ {line}" for line in lines)
