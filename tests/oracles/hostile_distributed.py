"""Hostile and broken distributed checkpoints: a genuine one, and changes to what it says."""

import pickle
import warnings
from dataclasses import replace

import torch
import torch.distributed.checkpoint as dcp
from hostile_files import STATE, archive, payloads, tuples
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex


def genuine(folder):
    """A distributed checkpoint of this process alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": STATE}, checkpoint_id=str(folder / "shards"), no_dist=True)
    return folder / "shards"


def changed(change):
    """A checkpoint whose metadata was changed by a function of it."""

    def write(folder):
        shards = genuine(folder)
        metadata = pickle.loads((shards / ".metadata").read_bytes())
        (shards / ".metadata").write_bytes(pickle.dumps(change(metadata) or metadata))
        return shards

    return write


def place(**fields):
    """Change where the pieces of the first tensor are."""

    def change(metadata):
        index, found = next(iter(metadata.storage_data.items()))
        metadata.storage_data[index] = replace(found, **fields)

    return changed(change)


def piece(**fields):
    """Change the first piece of every tensor."""

    def change(metadata):
        for tensor in metadata.state_dict_metadata.values():
            for name, value in fields.items():
                setattr(tensor.chunks[0], name, torch.Size(value))

    return changed(change)


def shape(*numbers, alone=False):
    """Change the declared shape of every tensor, and of its piece unless ``alone``."""

    def change(metadata):
        for tensor in metadata.state_dict_metadata.values():
            tensor.size = torch.Size(numbers)
            if not alone:
                tensor.chunks = [ChunkStorageMetadata(torch.Size([0] * len(numbers)), tensor.size)]

    return changed(change)


def raw(data):
    """A checkpoint whose metadata is these bytes."""

    def write(folder):
        shards = genuine(folder)
        (shards / ".metadata").write_bytes(data(folder) if callable(data) else data)
        return shards

    return write


def pieces(data):
    """A checkpoint whose shard is these bytes, with as many for every piece."""

    def write(folder):
        content = data(folder)

        def change(metadata):
            names = list(metadata.storage_data)
            for number, index in enumerate(names):
                metadata.storage_data[index] = _StorageInfo(
                    "__0_0.distcp", number * len(content), len(content)
                )

        shards = changed(change)(folder)
        (shards / "__0_0.distcp").write_bytes(content * 2)
        return shards

    return write


def linked(folder):
    """A checkpoint whose shard is a link that leads out of it."""
    shards = genuine(folder)
    (shards / "__0_0.distcp").rename(folder / "outside.distcp")
    (shards / "__0_0.distcp").symlink_to("../outside.distcp")
    return shards


def doubled(metadata):
    """Two pieces at one place, which do not cover the tensor."""
    tensor = metadata.state_dict_metadata["model.0.weight"]
    half = ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([1, 3]))
    tensor.chunks = [half, half]


def beside(metadata):
    """Two pieces that overlap, and add up to the tensor's size."""
    tensor = metadata.state_dict_metadata["model.0.weight"]
    tensor.chunks = [
        ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([1, 3])),
        ChunkStorageMetadata(torch.Size([0, 1]), torch.Size([2, 1])),
        ChunkStorageMetadata(torch.Size([1, 2]), torch.Size([1, 1])),
    ]
    index = next(i for i in metadata.storage_data if i.fqn == "model.0.weight")
    for number, offset in enumerate(((0, 1), (1, 2))):
        metadata.storage_data[MetadataIndex(index.fqn, offset)] = _StorageInfo(
            "__0_0.distcp", 4 * number, 4
        )


def paths(value):
    """Other paths to all entries."""

    def change(metadata):
        metadata.planner_data = dict.fromkeys(metadata.state_dict_metadata, value)

    return changed(change)


DISTRIBUTED = {
    **{
        f"metadata-{name}": raw(lambda folder, name=name: payloads(folder / "marker")[name])
        for name in ("global-reduce", "stack-global", "inst", "obj", "newobj", "build", "ext1")
    },
    "metadata-eval": raw(lambda folder: payloads(folder / "marker")["eval"]),
    "metadata-persid": raw(lambda folder: payloads(folder / "marker")["persid-text"]),
    "metadata-tuples": raw(b"\x80\x02" + tuples(60) + b"}h\x01K\x01s."),
    "metadata-memo-index": raw(b"\x80\x02}r\xff\xff\xff\x7f."),
    "metadata-memo-index-unfollowed": raw(b"\x80\x02}(Kb}r\xff\xff\xff\x7f."),
    "metadata-cut": raw(pickle.dumps({"a": 1})[:-3]),
    "metadata-other": raw(pickle.dumps({"state_dict_metadata": {}})),
    "metadata-empty": raw(b""),
    "metadata-without-state": raw(
        b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81."
    ),
    "file-up": place(relative_path="../outside.distcp"),
    "file-absolute": place(relative_path="/etc/passwd"),
    "file-missing": place(relative_path="__7_0.distcp"),
    "file-number": place(relative_path=3),
    "place-negative": place(offset=-5),
    "place-beyond": place(length=1 << 50),
    "place-overlapping": place(offset=7, length=1000),
    "compressed": place(transform_descriptors=("zstd",)),
    "shape-absurd": shape(1 << 30, 1 << 30),
    "shape-alone": shape(1 << 30, 1 << 30, alone=True),
    "shape-other": shape(3, 2),
    "piece-outside": piece(offsets=(1, 1)),
    "piece-short": piece(sizes=(1, 1)),
    "pieces-twice": changed(doubled),
    "pieces-overlap": changed(beside),
    "piece-with-payload": pieces(lambda f: archive(payloads(f / "marker")["global-reduce"])),
    "piece-no-tensor": pieces(lambda _: archive(b"\x80\x02K\x01.")),
    "piece-of-zeros": pieces(lambda _: bytes(500)),
    "path-empty": paths(()),
    "path-the-same": paths(("model", "w")),
    "path-deep": paths(("a",) * 100),
    "path-of-floats": paths((0.5,)),
    "no-places": changed(lambda m: setattr(m, "storage_data", None)),
    "no-pieces": changed(lambda m: setattr(m.state_dict_metadata["model.0.bias"], "chunks", [])),
    "entries-a-list": changed(lambda m: setattr(m, "state_dict_metadata", [1])),
    "link-outside": linked,
}
