"""Coverage-guided fuzzing of everything that looks at a checkpoint before its tensors are trusted.

Every input is one of six kinds, told by its first byte: a file that is sniffed; one that is read; a
pickle that is scanned; the ``.metadata`` of a distributed checkpoint; the index of a Hugging Face
folder; a pickle that is read with stand-ins for its code. An error other than a LandscapeError,
more than 20 seconds or 3 GB for an input, and anything written to disk are findings, kept as
``crash-*`` in the folder of findings.

Run with:  python benchmarks/fuzz_checkpoints.py --seconds 3600
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["landscape"]):
    from landscape.checkpoint import choose_weights, read_checkpoint
    from landscape.contents import read_model_folder
    from landscape.distributed_checkpoint import read_distributed
    from landscape.errors import LandscapeError
    from landscape.folders import weights_file
    from landscape.inert import read_without_code
    from landscape.origin import recognise
    from landscape.pickle_scan import scan_pickles
    from landscape.skeleton import task_skeleton
    from landscape.sniffing import sniff
    from landscape.summary import summarise

import torch

# The fuzzer ends its process without cleaning up, so that the folder of work is its parent's.
_FOLDER = "LANDSCAPE_FUZZ_FOLDER"
WORK = Path(os.environ.get(_FOLDER, ""))
KINDS = 6


def one_input(data: bytes) -> None:
    """Try one input; errors that are meant are swallowed."""
    if not data:
        return
    kind, body = data[0] % KINDS, data[1:]
    try:
        if kind == 0:
            sniff(body[:4096], len(body), "fuzzed")
        elif kind == 1:
            found = read_checkpoint(written("file", body))
            summarise(found)
            recognise(found)
            compile(
                task_skeleton(found.tensors, checkpoint="fuzzed", file="task.py").text,
                "task",
                "exec",
            )
        elif kind == 2:
            scan_pickles(body, 1 + body[-1:].count(b"."))
        elif kind == 3:
            written("shards/.metadata", body)
            choose_weights(read_distributed(str(WORK / "shards")), "fuzzed")
        elif kind == 4:
            written("model/model.safetensors.index.json", body)
            folder = WORK / "model"
            read_model_folder(str(folder), weights_file(folder) or "")
        else:
            path = written("archive", archive(body))
            choose_weights(read_without_code(path)[0], path)
    except LandscapeError:
        pass
    expected = {"archive", "file", "model", "shards"}
    if extra := {entry.name for entry in WORK.iterdir()} - expected:
        raise RuntimeError(f"an input wrote {extra}")


def written(name: str, body: bytes) -> str:
    """Write an input into the folder of work and return its path."""
    path = WORK / name
    path.write_bytes(body)
    return str(path)


def archive(pickled: bytes) -> bytes:
    """A zip file as ``torch.save`` writes it, around a pickle and one storage."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("a/data.pkl", pickled)
        made.writestr("a/version", b"3\n")
        made.writestr("a/data/0", bytes(64))
    return buffer.getvalue()


def prepare(corpus: Path) -> None:
    """Write genuine files of every kind to begin with, and the folders that inputs are put into."""
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save

    state = {"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(2)}
    buffer, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"model": state, "step": 3}, buffer)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    safe = save(state, {"step": "1"})
    with zipfile.ZipFile(buffer) as made:
        pickled = made.read(next(n for n in made.namelist() if n.endswith("data.pkl")))
    (WORK / "model").mkdir()
    (WORK / "model" / "a.safetensors").write_bytes(save({"0.weight": state["0.weight"]}))
    (WORK / "model" / "b.safetensors").write_bytes(save({"0.bias": state["0.bias"]}))
    index = (
        b'{"metadata": {}, "weight_map": {"0.weight": "a.safetensors", "0.bias": "b.safetensors"}}'
    )
    dcp.save({"model": state, "step": 3}, checkpoint_id=str(WORK / "shards"), no_dist=True)
    metadata = (WORK / "shards" / ".metadata").read_bytes()
    seeds = [
        *((kind, body) for kind in (0, 1) for body in (safe, buffer.getvalue(), legacy.getvalue())),
        *((kind, body) for kind in (2, 5) for body in (pickled, pickle.dumps({"a": [1, (2,)]}))),
        (3, metadata),
        (4, index),
        (1, struct.pack("<Q", 8) + b'{"a":{}}'),
    ]
    corpus.mkdir(parents=True, exist_ok=True)
    for number, (kind, body) in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(bytes([kind]) + body)


def main() -> None:
    """Fuzz for some seconds or some inputs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--runs", type=int, default=-1, help="inputs; -1 as many as there is time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="folder of inputs to go on from")
    parser.add_argument("--findings", type=Path, default=Path("fuzz_findings"))
    options = parser.parse_args()
    options.findings.mkdir(parents=True, exist_ok=True)
    if _FOLDER not in os.environ:
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory(prefix="fuzz_", dir=memory) as folder:
            environment = {**os.environ, _FOLDER: str(Path(folder) / "work")}
            sys.exit(subprocess.call([sys.executable, *sys.argv], env=environment))
    torch.set_num_threads(1)
    WORK.mkdir()
    corpus = options.corpus or WORK.with_name("corpus")
    prepare(corpus)
    arguments = [
        sys.argv[0],
        f"-max_total_time={options.seconds}",
        f"-runs={options.runs}",
        f"-seed={options.seed}",
        f"-artifact_prefix={options.findings}/",
        *("-timeout=20", "-rss_limit_mb=3000", "-max_len=6000", "-print_final_stats=1"),
        str(corpus),
    ]
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
