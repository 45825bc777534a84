"""Who imports whom, and what a command imports at all."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import landscape

LIBRARY = Path(landscape.__file__).parent
CLI = LIBRARY.parent / "cli"
MODULES = sorted(LIBRARY.rglob("*.py"))

# A module imports only from its own layer and those above it in this list.
LAYERS = [
    {
        "errors",
        "text",
        "rng",
        "results",
        "memory",
        "smoothing",
        "budget",
        "reductions",
        "drift",
        "units",
        "launch",
        "cost",
    },
    {"coordinates"},
    {"distributed"},
    {"led"},
    {"criteria", "paths", "pickle_scan", "sniffing", "tasks"},
    {"folders", "pickles", "states"},
    {"lock", "resources", "disk_file"},
    {"sweep_file"},
    {"jobs"},
    {"unit_process"},
    {"slurm"},
    {"unit_state"},
    {"contents", "tensor_facts"},
    {"distributed_checkpoint", "inert"},
    {"task", "data", "checkpoint", "params", "training_files"},
    {"summary", "origin", "conversion", "skeleton", "node_copy"},
    {"initialisation", "loading"},
    {"risk", "training"},
    {"products"},
    {"gram", "jacobian_products", "recording"},
    {"compiled"},
    {"operators"},
    {"mixed", "sharded"},
    {"krylov", "restarts"},
    {"eigensolver", "contour", "saddle", "coupling"},
    {"sums", "quadratic_form"},
    {"density", "trace", "spectrum", "checks", "settings"},
    {"log_density", "agreement", "series_records"},
    {"priors", "prior_options", "volume", "flat"},
    {"compare", "information", "modules"},
    {"slices"},
    {"hessian", "volume_series", "flat_series", "series"},
    {"compare_spaces", "information_series"},
    {"store", "record_store", "volume_store", "anneal_store", "flat_store", "compare_store"}
    | {"slice_store", "information_store", "modules_store"},
    {"partial", "volume_series_store", "flat_series_store", "step_axis", "volume_merge"},
    {"series_store"},
    {"sweep_store"},
    {"plotting", "series_plot", "volume_plot", "volume_series_plot", "anneal_plot", "flat_plot"}
    | {"compare_plot", "slice_plot", "information_plot", "modules_plot"},
    {"measurement"},
    {"prior_measurement"},
    {"volume_anneal"},
    {"runs", "volume_runs", "flat_runs", "slice_runs", "information_runs"} | {"modules_runs"},
    {"compare_volumes"},
    {"compare_runs"},
]
# These read and write files or draw; all others are numerics.
OUTER = {
    "anneal_plot",
    "anneal_store",
    "compare_plot",
    "compare_runs",
    "compare_store",
    "compare_volumes",
    "flat_plot",
    "flat_runs",
    "flat_series_store",
    "flat_store",
    "information_plot",
    "information_runs",
    "information_store",
    "record_store",
    "store",
    "partial",
    "plotting",
    "measurement",
    "modules_plot",
    "modules_runs",
    "modules_store",
    "prior_measurement",
    "runs",
    "series_store",
    "series_plot",
    "slice_plot",
    "slice_runs",
    "slice_store",
    "step_axis",
    "sweep_store",
    "volume_plot",
    "volume_runs",
    "volume_series_plot",
    "volume_series_store",
    "volume_store",
}
# The Krylov methods know nothing of networks.
KRYLOV = {"errors", "rng", "memory", "drift", "operators", "reductions"}


def imports(path: Path, *, top: bool = False) -> set[str]:
    """Dotted names that a module imports; with ``top``, only while it is itself imported."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        waiting.extend(ast.iter_child_nodes(node))
    return found


def roots(path: Path, **options: bool) -> set[str]:
    return {name.partition(".")[0] for name in imports(path, **options)}


def own(path: Path) -> set[str]:
    """First names below ``landscape`` that a module imports."""
    parts = [name.split(".") for name in imports(path)]
    names = {p[1] for p in parts if p[0] == "landscape" and len(p) > 1}
    return names - {"__version__"}


def layer(name: str) -> int:
    (found,) = [index for index, names in enumerate(LAYERS) if name in names]
    return found


def name_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(LIBRARY)))
class TestLibrary:
    def test_never_imports_the_command_line(self, path):
        assert not roots(path) & {"landscape_cli", "cli", "typer", "click", "rich"}

    def test_numerics_import_neither_files_nor_figures(self, path):
        if name_of(path) not in OUTER:
            forbidden = {"h5py", "matplotlib", "h5netcdf", "xarray"}
            # `versions` of what wrote a file are the only exception, and in an outer module.
            assert not roots(path) & forbidden
            assert not own(path) & OUTER or name_of(path) == "__init__"

    def test_imports_only_lower_layers(self, path):
        name = name_of(path)
        if name in ("__init__", "tasks"):
            return
        for other in own(path) - {name}:
            if other in {n for names in LAYERS for n in names}:
                # Task names are looked up, and built-in tasks built, on request.
                if (name, other) in {("task", "tasks")}:
                    continue
                assert layer(other) <= layer(name), f"{name} imports {other}"


def test_every_module_has_a_layer():
    """A new module is entered in LAYERS, where it is seen what it may import."""
    assert {name_of(path) for path in MODULES} - {"__init__"} <= set().union(*LAYERS)


def test_built_in_tasks_see_only_what_a_user_s_task_sees():
    for path in (LIBRARY / "tasks").glob("*.py"):
        assert own(path) <= {"tasks", "task", "criteria", "errors", "rng"}, path


def test_krylov_knows_nothing_of_networks():
    assert own(LIBRARY / "krylov.py") <= KRYLOV
    third_party = roots(LIBRARY / "krylov.py") - set(sys.stdlib_module_names) - {"landscape"}
    assert third_party <= {"numpy", "scipy", "torch"}


def test_figures_need_no_torch():
    light = {"errors", "results", "smoothing", "store", "text", "log_density", "agreement"}
    light |= {"disk_file", "sweep_store"}
    light |= {"series", "series_records", "series_store", "series_plot", "step_axis", "plotting"}
    light |= {"volume_plot", "volume_series", "volume_series_plot", "volume_series_store"}
    light |= {"volume_store", "anneal_plot", "anneal_store", "record_store", "volume", "flat"}
    light |= {"compare", "compare_plot", "compare_store", "slices", "slice_plot", "slice_store"}
    light |= {"modules", "modules_plot", "modules_store"}
    light |= {"flat_plot", "flat_series", "flat_series_store", "flat_store"}
    light |= {"information", "information_plot", "information_series", "information_store"}
    packages = {"volume", "flat", "compare", "slices", "information", "modules"}
    paths = [LIBRARY / f"{name}.py" for name in light - packages]
    records = ("records", "anneal_records", "anneal_summary", "islands", "mixing", "weights")
    paths += [LIBRARY / "volume" / f"{name}.py" for name in records]
    for path in (*paths, *(LIBRARY / name / "records.py" for name in packages - {"volume"})):
        assert own(path) <= light, path
        assert "torch" not in roots(path), path


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda p: p.name)
def test_commands_import_late(path):
    """What --help loads must stay light: heavy modules are imported where they are used."""
    if path.name in (
        "batch_collect.py",
        "measuring.py",
        "merging.py",
        "hessian_job.py",
        "batch_collect.py",
        "flat_job.py",
        "compare_job.py",
        "slice_job.py",
        "information_job.py",
        "information_series.py",
        "modules_job.py",
        "volume_job.py",
    ) or path.stem.startswith("render"):
        return  # Imported by the commands when they run.
    heavy = {"torch", "numpy", "scipy", "h5py", "matplotlib", "sklearn", "safetensors", "rich"}
    assert not roots(path, top=True) & heavy
    library = {n for n in imports(path, top=True) if n.startswith("landscape.")}
    names = {n.split(".")[1] for n in library}
    assert names <= {"errors", "text", "launch", "__version__"}, names


# What is loaded ----------------------------------------------------------------------------------


def loaded(code: str, *arguments: object) -> set[str]:
    """Root names of the modules that a fresh process has after running some code."""
    code += "\nimport sys\nprint('LOADED', *{n.partition('.')[0] for n in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.rpartition("LOADED")[2].split())


RUN = "import sys\nfrom landscape_cli.app import run\nassert run(sys.argv[1:]) == 0\n"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A result file."""
    import torch
    from torch import nn

    from landscape.hessian import HessianOptions
    from landscape.runs import hessian_spectrum
    from landscape.store import save
    from landscape.task import Task

    data = (torch.linspace(0, 1, 8).reshape(4, 2), torch.arange(4) % 2)
    task = Task(model=nn.Linear(2, 2), data=data, criterion="cross_entropy")
    path = tmp_path_factory.mktemp("results") / "a.h5"
    save(path, hessian_spectrum(task, options=HessianOptions(top=2)))
    return path


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["hessian", "--help"]], ids=str)
def test_help_imports_no_numerics(arguments):
    assert not loaded(RUN, *arguments) & {"torch", "numpy", "scipy", "h5py", "matplotlib"}


def test_show_imports_no_torch(result):
    found = loaded(RUN, "show", result)
    assert "h5py" in found
    assert not found & {"torch", "matplotlib", "sklearn"}


def test_plot_imports_no_torch(result):
    found = loaded(RUN, "plot", result)
    assert "matplotlib" in found
    assert "torch" not in found
    assert result.with_suffix(".png").exists()


def test_the_library_imports_nothing_by_itself():
    assert not loaded("import landscape") & {"torch", "h5py", "numpy", "scipy", "matplotlib"}


def test_reading_results_imports_no_torch(result):
    assert "torch" not in loaded("import sys, landscape; landscape.load(sys.argv[1])", result)


def test_every_public_name_resolves():
    assert sorted(landscape.__all__) == dir(landscape)
    for name in landscape.__all__:
        assert getattr(landscape, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = landscape.nothing


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_what_a_module_exports_exists(path):
    import importlib

    parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
    module = importlib.import_module(".".join(p for p in parts if p != "__init__"))
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name)


def cpu_seconds(*command: str) -> float:
    """User and system time of a process, the least of three runs."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            command, check=True, capture_output=True, env={**os.environ, "COLUMNS": "99"}
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_help_takes_less_than_half_a_second_of_cpu_time():
    bare = cpu_seconds(sys.executable, "-c", "pass")
    assert cpu_seconds(sys.executable, "-m", "landscape_cli", "--help") - bare < 0.5
