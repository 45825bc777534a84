"""Virtual environments for the peers, and workers that run in them; standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TORCH = "torch==2.13.0"
PROBES = {
    "main": (
        "landscape.eigensolver",
        "landscape.density",
        "curvlinops",
        "hessian_eigenthings.algorithms",
    ),
    "pyhessian": ("pyhessian",),
    "devinterp": ("devinterp",),
}
REQUIREMENTS: dict[str, list[list[str]]] = {
    # Installed one after the other, so that the command that fails can be told.
    "main": [
        ["--editable", str(ROOT)],
        ["curvlinops-for-pytorch==3.0.1"],
        ["hessian-eigenthings==1.0.0a5"],
    ],
    "pyhessian": [["numpy"], ["pyhessian==0.1"]],
    "devinterp": [["devinterp==1.3.2"]],
}


@dataclass(kw_only=True)
class Environment:
    """An interpreter with some of the libraries.

    Attributes:
        name: ``main``, ``pyhessian`` or ``devinterp``.
        python: its interpreter.
        failures: failed installations, as (command, message).
    """

    name: str
    python: str
    failures: list[tuple[str, str]] = field(default_factory=list)


def create(name: str) -> Environment:
    """Create an environment under ``.envs``, or reuse it where its requirements are the same."""
    folder = HERE / ".envs" / name
    python = folder / "bin" / "python"
    wanted = repr((TORCH, REQUIREMENTS[name], (ROOT / "pyproject.toml").read_text()))
    key = hashlib.sha256(wanted.encode()).hexdigest()
    stamp = folder / "installed.json"
    if stamp.exists():
        stored = json.loads(stamp.read_text())
        if stored["key"] == key:
            failures = [tuple(pair) for pair in stored["failures"]]
            return Environment(name=name, python=str(python), failures=failures)
    print(f"creating the environment {name!r} ...", file=sys.stderr, flush=True)
    venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    constraints = folder / "constraints.txt"
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    constraints.write_text(
        "\n".join([TORCH, *(pin for pin in pins if not pin.startswith("torch=="))]) + "\n"
    )
    failures = []
    for arguments in [[TORCH], *REQUIREMENTS[name]]:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "--constraint", str(constraints), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            shown = "pip install " + " ".join(a.replace(str(ROOT), ".") for a in arguments)
            failures.append((shown, _last_error(done.stderr)))
            if arguments == [TORCH]:
                break
    stamp.write_text(json.dumps({"key": key, "failures": failures}))
    return Environment(name=name, python=str(python), failures=failures)


def _last_error(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1]


class Worker:
    """A process that answers requests in one environment; see ``worker.py``."""

    def __init__(self, environment: Environment, *, threads: int) -> None:
        self.environment = environment
        self.threads = threads
        self._cache = tempfile.TemporaryDirectory(prefix="programs-")
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._process = subprocess.Popen(
            [environment.python, str(HERE / "worker.py"), *PROBES[environment.name]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            env={
                **os.environ,
                **dict.fromkeys(variables, str(threads)),
                # An earlier campaign's compiled programs would hide what compilation takes.
                "TORCHINDUCTOR_CACHE_DIR": self._cache.name,
            },
        )
        self.versions: dict[str, str] = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.environment.name!r} ended early")
        return json.loads(line)

    def ask(self, task: str, *, limit: int = 120, **arguments: Any) -> dict[str, Any]:
        """Run one task in a fresh process; ``error`` in the answer says what went wrong."""
        assert self._process.stdin is not None
        request = {"task": task, "limit": limit, "threads": self.threads, "arguments": arguments}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._cache.cleanup()
