"""A worker: reads one JSON request per line, runs each in a forked child, answers one JSON line.

The child starts with the libraries imported and nothing computed, so that runs neither warm nor
fragment each other's memory, and its peak memory is its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import traceback
import warnings
from importlib import metadata
from typing import Any

import measure
import torch


def _run(request: dict[str, Any]) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(request["threads"])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return measure.TASKS[request["task"]](**request["arguments"])
    except BaseException as error:
        if os.environ.get("BENCHMARK_TRACEBACK"):
            traceback.print_exc()
        lines = str(error).strip().splitlines()
        return {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(request["limit"])
        payload = json.dumps(_run(request)).encode()
        with os.fdopen(writing, "wb") as stream:
            stream.write(payload)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        payload = stream.read()
    _, status = os.waitpid(child, 0)
    if payload:
        return json.loads(payload)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return {"error": f"stopped after {request['limit']} s"}
    return {"error": f"the process ended with status {status}"}


def main() -> None:
    """Serve requests until the input ends."""
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    for name in sys.argv[1:]:
        try:
            importlib.import_module(name)
            package = name.partition(".")[0]
            owner = metadata.packages_distributions()[package][0]
            versions[owner] = metadata.version(owner)
        except Exception as error:
            versions[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
