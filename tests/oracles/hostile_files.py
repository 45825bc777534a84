"""Hostile and broken checkpoints: each is a function that writes one into a folder."""

import io
import json
import os
import pickle
import struct
import zipfile

import torch
from safetensors.torch import save, save_file

MAGIC = 0x1950A86A20F9469CFC6C
STATE = {"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(2)}


# Pickles -----------------------------------------------------------------------------------------


def text(value):
    """A short string, as every protocol since 1 reads it."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def payloads(marker):
    """Pickles that would write a file, by the opcodes that they do it with."""
    command = f"touch {marker}"
    touch = text(command)
    call = b"cposix\nsystem\n" + touch + b"\x85R"
    write = b"cbuiltins\nopen\n" + text(str(marker)) + text("w") + b"\x86R"
    popen = b"csubprocess\nPopen\n"
    words = b"]" + text("touch") + b"a" + text(str(marker)) + b"a\x85"
    state = b"}" + text("__setstate__") + b"cposix\nsystem\ns"
    nested = pickle.dumps(command, protocol=2)
    code = text(f"open({str(marker)!r}, 'w')")
    return {
        "global-reduce": b"\x80\x02" + call + b".",
        "global-open": b"\x80\x02" + write + b".",
        "stack-global": b"\x80\x04" + text("posix") + text("system") + b"\x93" + touch + b"\x85R.",
        "inst": b"\x80\x02(" + touch + b"iposix\nsystem\n.",
        "obj": b"\x80\x02(cposix\nsystem\n" + touch + b"o.",
        "newobj": b"\x80\x02" + popen + words + b"\x81.",
        "newobj-ex": b"\x80\x04" + popen + words + b"}\x92.",
        "build": b"\x80\x02ctypes\nSimpleNamespace\n)\x81" + state + b"b" + touch + b"b.",
        "build-twice": b"\x80\x02cargparse\nNamespace\n)\x81" + state + b"b" + call + b"b.",
        "memo": b"\x80\x02cposix\nsystem\nq\x01" + text("x") + b"0h\x01" + touch + b"\x85R.",
        "ext1": b"\x80\x02\x82\x01.",
        "ext2": b"\x80\x02\x83\x01\x01.",
        "ext4": b"\x80\x02\x84\x01\x00\x00\x01.",
        "persid-text": b"\x80\x02Pposix.system\n.",
        "persid-other": b"\x80\x02" + text("module") + call + b"\x86Q.",
        "persid-code": b"\x80\x02("
        + text("storage")
        + call
        + text("0")
        + text("cpu")
        + b"K\x01tQ.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\ncposix\nsystem\n" + text("__call__") + b"\x86R.",
        "eval": b"\x80\x02cbuiltins\neval\n" + code + b"\x85R.",
        "exec": b"\x80\x02cbuiltins\nexec\n" + code + b"\x85R.",
        "python-2-names": b"\x80\x02c__builtin__\neval\n" + code + b"\x85R.",
        "runpy": b"\x80\x02crunpy\nrun_path\n" + text(str(marker)) + b"\x85R.",
        "pickle-in-pickle": b"\x80\x02cpickle\nloads\n" + text(nested.hex()) + b"\x85R.",
        "torch-load": b"\x80\x02ctorch.serialization\nload\n" + text(str(marker)) + b"\x85R.",
        "torch-hub": b"\x80\x02ctorch.hub\nload\n" + text("a/b") + text("c") + b"\x86R.",
        "partial": b"\x80\x02cfunctools\npartial\ncposix\nsystem\n" + touch + b"\x86R)R.",
        "reconstructor": b"\x80\x02ccopy_reg\n_reconstructor\n" + popen + b"\x85R.",
        "methodcaller": b"\x80\x02coperator\nmethodcaller\n" + text("system") + touch + b"\x86R.",
        "beside-weights": b"\x80\x02}" + text("w") + call + b"s.",
        "as-key": b"\x80\x02}" + call + text("w") + b"s.",
        "after-damage": b"\x80\x02" + call + b"\xff\xff",
        "protocol-0": b"cposix\nsystem\n(V" + command.encode() + b"\ntR.",
        "after-stop": b"\x80\x02}." + call + b".",
    }


def tuples(levels):
    """A tuple of two tuples of two ...: 2^levels of them to hash."""
    return b")q\x01" + b"h\x01h\x01\x86q\x01" * levels + b"h\x01"


def shared(levels):
    """A dict of dicts that share their values."""
    step = b"}" + text("a") + b"h\x01s" + text("b") + b"h\x01sq\x01"
    return b"}q\x01" + step * levels


def big(number):
    """An integer of 64 bits."""
    return b"\x8a\x08" + number.to_bytes(8, "little", signed=True)


def storage(key, size, kind="FloatStorage"):
    """A reference to a storage of the archive."""
    named = f"ctorch\n{kind}\n".encode()
    return b"(" + text("storage") + named + text(key) + text("cpu") + big(size) + b"tQ"


def tensor(size, shape, strides, offset=0, key="0", kind="FloatStorage"):
    """A tensor in a storage."""
    numbers = [b"(" + b"".join(big(n) for n in each) + b"t" for each in (shape, strides)]
    hooks = b"ccollections\nOrderedDict\n)R"
    place = storage(key, size, kind) + big(offset) + numbers[0] + numbers[1]
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + b"\x89" + hooks + b"tR"


BOMBS = {
    "tuples-as-key": b"\x80\x02" + tuples(60) + b"0}h\x01K\x01s.",
    "tuples-as-key-without-pop": b"\x80\x02" + tuples(60) + b"}h\x01K\x01s.",
    "tuples-in-set": b"\x80\x02" + tuples(60) + b"c__builtin__\nset\n]h\x01a\x85R.",
    "tuples-in-frozenset": b"\x80\x04" + tuples(60) + b"(h\x01\x91.",
    "shared-dicts": b"\x80\x02" + shared(60) + b".",
    "bytearray": b"\x80\x02c__builtin__\nbytearray\n" + big(10**11) + b"\x85R.",
    "punycode": b"\x80\x02c_codecs\nencode\n"
    + text("".join(map(chr, range(5000, 25000))))
    + text("punycode")
    + b"\x86R.",
    "memo-index": b"\x80\x02}r\xff\xff\xff\x7f.",
    "storage-of-nothing": b"\x80\x02ctorch.storage\nUntypedStorage\n" + big(10**13) + b"\x85R.",
    "tensor-of-nothing": b"\x80\x02}"
    + text("w")
    + b"ctorch\nFloatTensor\n"
    + big(10**13)
    + b"\x85Rs.",
    "memo-index-after-mark": b"\x80\x02(0}r\xff\xff\xff\x7f.",
    "memo-index-after-damage": b"\x80\x02}0}r\xff\xff\xff\x7f\x94N0000b.",
    "memo-index-unfollowed": b"\x80\x02}(Kb}r\xff\xff\xff\x7f.",
    "bytearray-cut": b"\x80\x05\x96\xff\xff\xff\x7f\0\0\0\0abc",
    "long-string": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "deep-lists": b"\x80\x02" + b"]" * 30_000 + b"a" * 29_999 + b".",
    "many-marks": b"\x80\x02" + b"(" * 30_000 + b".",
    "stride-0": b"\x80\x02}" + text("w") + tensor(16, (10**6, 10**6), (0, 0)) + b"s.",
    "overflowing-shape": b"\x80\x02}" + text("w") + tensor(16, (1 << 40, 1 << 40), (0, 0)) + b"s.",
    "negative-shape": b"\x80\x02}" + text("w") + tensor(16, (-4, 4), (4, 1)) + b"s.",
    "negative-stride": b"\x80\x02}" + text("w") + tensor(16, (4, 4), (-4, 1), 12) + b"s.",
    "negative-offset": b"\x80\x02}" + text("w") + tensor(16, (4, 4), (4, 1), -4) + b"s.",
    "beyond-storage": b"\x80\x02}" + text("w") + tensor(16, (4, 5), (5, 1)) + b"s.",
    "storage-too-large": b"\x80\x02}" + text("w") + tensor(10**7, (10**7,), (1,)) + b"s.",
    "storage-negative": b"\x80\x02}" + text("w") + tensor(-1, (4,), (1,)) + b"s.",
    "storage-missing": b"\x80\x02}" + text("w") + tensor(16, (4, 4), (4, 1), key="9") + b"s.",
    "storage-outside": b"\x80\x02}" + text("w") + tensor(16, (4, 4), (4, 1), key="../../0") + b"s.",
    "no-tensors": b"\x80\x02}.",
    "not-a-dict": b"\x80\x02K\x01.",
    "empty": b"",
}


def archive(pickled, **members):
    """What ``torch.save`` would write around a pickle and one storage of 64 bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("a/data.pkl", pickled)
        made.writestr("a/version", b"3\n")
        made.writestr("a/data/0", bytes(64))
        for name, data in members.items():
            made.writestr(name, data)
    return buffer.getvalue()


def legacy(pickled, keys=None):
    """The format before PyTorch 1.6 around a pickle."""
    head = pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    return head + pickled + (pickle.dumps([], 2) if keys is None else keys)


# Zip files ---------------------------------------------------------------------------------------

GOOD = b"\x80\x02}" + text("w") + tensor(16, (4, 4), (4, 1)) + b"s."


def packed(name, data, method=zipfile.ZIP_DEFLATED):
    """An archive with one member that is compressed."""
    buffer = io.BytesIO(archive(GOOD))
    with zipfile.ZipFile(buffer, "a") as made:
        made.writestr(name, data, method)
    return buffer.getvalue()


def patched(data, find, replacement):
    """A file with the last of some bytes replaced."""
    place = data.rindex(find)
    return data[:place] + replacement + data[place + len(replacement) :]


def resized(size):
    """An archive whose directory declares another size of the last member."""
    data = archive(GOOD)
    place = data.rindex(b"PK\x01\x02")
    return data[: place + 24] + struct.pack("<I", size) + data[place + 28 :]


def moved():
    """An archive whose directory lets two members overlap."""
    data = archive(GOOD)
    place = data.rindex(b"PK\x01\x02")
    return data[: place + 42] + struct.pack("<I", 5) + data[place + 46 :]


def repeated():
    """An archive with two pickles of one name: readers differ in which they take."""
    data = archive(GOOD, **{"a/data.pk1": payloads("never")["global-reduce"]})
    return data.replace(b"a/data.pk1", b"a/data.pkl")


def many():
    """An archive of very many empty members."""
    buffer = io.BytesIO(archive(GOOD))
    with zipfile.ZipFile(buffer, "a") as made:
        for number in range(2000):
            made.writestr(f"a/data/x{number}", b"")
    return buffer.getvalue()


ZIPS = {
    "zeros": lambda: packed("a/data/1", bytes(1 << 24)),
    "zeros-bzip2": lambda: packed("a/data/1", bytes(1 << 24), zipfile.ZIP_BZIP2),
    "zeros-lzma": lambda: packed("a/data/1", bytes(1 << 22), zipfile.ZIP_LZMA),
    "declared-size": lambda: resized(0xFFFFFF00),
    "overlapping": moved,
    "repeated-name": repeated,
    "cut": lambda: archive(GOOD)[:-30],
    "cut-directory": lambda: archive(GOOD)[:300],
    "encrypted": lambda: patched(
        archive(GOOD), b"PK\x01\x02", b"PK\x01\x02\x14\x00\x14\x00\x01\x00"
    ),
    "no-pickle": lambda: archive(GOOD).replace(b"data.pkl", b"data.abc"),
    "torchscript": lambda: archive(GOOD, **{"a/constants.pkl": GOOD, "a/code/x.py": b"1"}),
    "names-outside": lambda: archive(GOOD, **{"../evil": b"x", "/tmp/evil": b"x"}),
    "end-in-comment": lambda: archive(GOOD)[:-2] + struct.pack("<H", 4) + b"PK\x05\x06",
    "two-ends": lambda: archive(GOOD) + archive(payloads("never")["eval"]),
    "directory-beyond": lambda: archive(GOOD)[:-6] + b"\xff\xff\xff\x7f\0\0",
}
# Odd, but what is read of them is sound.
HARMLESS_ZIPS = {
    "many-members": many,
    "more-members": lambda: archive(GOOD, **{"a/code.py": b"raise SystemExit"}),
}


# Safetensors -------------------------------------------------------------------------------------


def safe(header, data=bytes(64), length=None):
    """A safetensors file with this header, given as JSON text or as a value."""
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written) if length is None else length) + written + data


def entry(shape=(4, 4), offsets=(0, 64), dtype="F32"):
    """The header's entry of one tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


SAFE = {
    "cut-header": lambda: safe({"w": entry()})[:20],
    "cut-data": lambda: safe({"w": entry()})[:-1],
    "header-of-exabytes": lambda: safe({"w": entry()}, length=1 << 62),
    "header-of-terabytes": lambda: safe({"w": entry()}, length=1 << 42),
    "header-of-100-MB": lambda: safe({"w": entry()}, length=10**8),
    "header-of-40-MB": lambda: safe(b"{" + b" " * (40 << 20) + b"}", b""),
    "header-of-0-bytes": lambda: safe(b"{}", length=0),
    "overlapping": lambda: safe({"a": entry(), "b": entry(offsets=(32, 96))}, bytes(96)),
    "same-place": lambda: safe({"a": entry(), "b": entry()}),
    "hole": lambda: safe({"a": entry(offsets=(0, 64)), "b": entry(offsets=(80, 144))}, bytes(144)),
    "more-data": lambda: safe({"w": entry()}, bytes(100)),
    "negative-shape": lambda: safe({"w": entry(shape=(-4, -4))}),
    "overflowing-shape": lambda: safe({"w": entry(shape=(1 << 40, 1 << 40))}),
    "shape-of-floats": lambda: safe({"w": entry(shape=(4.0, 4.0))}),
    "shape-too-small": lambda: safe({"w": entry(shape=(4, 3))}),
    "negative-offsets": lambda: safe({"w": entry(offsets=(-64, 0))}),
    "offsets-reversed": lambda: safe({"w": entry(offsets=(64, 0))}),
    "offsets-beyond": lambda: safe({"w": entry(offsets=(0, 1 << 40))}),
    "unknown-type": lambda: safe({"w": entry(dtype="X99")}),
    "key-twice": lambda: safe(b'{"w":%s,"w":%s}' % ((json.dumps(entry()).encode(),) * 2)),
    "field-twice": lambda: safe(
        b'{"w":{"dtype":"F32","dtype":"I8","shape":[4,4],"data_offsets":[0,64]}}'
    ),
    "not-json": lambda: safe(b"{'w': 1}"),
    "a-list": lambda: safe(b"{[1, 2]}"),
    "deep": lambda: safe(b'{"w":' * 100_000 + b"1" + b"}" * 100_000),
    "not-a-number": lambda: safe(b'{"w":NaN}'),
    "long-number": lambda: safe(b'{"w":' + b"9" * 10_000 + b"}"),
    "not-utf-8": lambda: safe(b'{"\xff\xfe":1}'),
    "metadata-of-numbers": lambda: safe({"__metadata__": {"step": 3}, "w": entry()}),
    "no-tensors": lambda: safe({"__metadata__": {"step": "3"}}, b""),
}


# Folders -----------------------------------------------------------------------------------------


def shards(folder, index, **files):
    """A Hugging Face folder with two shards; ``index`` is JSON text or the map of names."""
    model = folder / "model"
    model.mkdir()
    save_file({"0.weight": STATE["0.weight"]}, model / "a.safetensors")
    save_file({"0.bias": STATE["0.bias"]}, model / "b.safetensors")
    written = index if isinstance(index, bytes) else json.dumps({"weight_map": index}).encode()
    (model / "model.safetensors.index.json").write_bytes(written)
    for name, content in files.items():
        (model / name).write_bytes(content)
    return model


MAP = {"0.weight": "a.safetensors", "0.bias": "b.safetensors"}


def linked(folder, target):
    """A folder whose second shard is a link."""
    model = shards(folder, MAP)
    (model / "b.safetensors").unlink()
    os.symlink(target, model / "b.safetensors")
    return model


def outside(folder):
    """A sound file beside the folder."""
    path = folder / "outside.safetensors"
    save_file({"0.bias": STATE["0.bias"]}, path)
    return path


def piped(folder):
    """A folder whose second shard is a pipe."""
    model = shards(folder, MAP)
    (model / "b.safetensors").unlink()
    os.mkfifo(model / "b.safetensors")
    return model


def foldered(folder):
    """A folder whose second shard is a folder."""
    model = shards(folder, MAP)
    (model / "b.safetensors").unlink()
    (model / "b.safetensors").mkdir()
    return model


def sparse(folder):
    """A folder with an index of a gigabyte, none of it on disk."""
    model = shards(folder, MAP)
    with open(model / "model.safetensors.index.json", "r+b") as file:
        file.truncate(1 << 30)
    return model


def torch_shard(folder):
    """A folder with one shard in safetensors and one that is a pickle with a payload."""
    model = shards(folder, {"0.weight": "a.safetensors", "0.bias": "b.bin"})
    (model / "b.bin").write_bytes(archive(payloads(folder / "marker")["global-reduce"]))
    return model


def twice(folder):
    """A folder with one tensor in both shards."""
    model = shards(folder, MAP)
    save_file(STATE, model / "b.safetensors")
    return model


FOLDERS = {
    "index-up": lambda f: (outside(f), shards(f, {**MAP, "0.bias": "../outside.safetensors"}))[1],
    "index-absolute": lambda f: shards(f, {**MAP, "0.bias": str(outside(f))}),
    "index-backslash": lambda f: shards(f, {**MAP, "0.bias": "..\\b.safetensors"}),
    "index-nul": lambda f: shards(f, {**MAP, "0.bias": "b\0.safetensors"}),
    "index-dots": lambda f: shards(f, {**MAP, "0.bias": ".."}),
    "index-number": lambda f: shards(f, {**MAP, "0.bias": 3}),
    "index-other-ending": lambda f: shards(f, {**MAP, "0.bias": "config.json"}),
    "shard-missing": lambda f: shards(f, {**MAP, "0.bias": "c.safetensors"}),
    "tensor-missing": lambda f: shards(f, {**MAP, "0.more": "a.safetensors"}),
    "tensor-twice": twice,
    "key-twice": lambda f: shards(
        f, b'{"weight_map": {"0.bias": "a.safetensors", "0.bias": "b.safetensors"}}'
    ),
    "index-no-json": lambda f: shards(f, b"not JSON"),
    "index-list": lambda f: shards(f, b"[1, 2]"),
    "index-deep": lambda f: shards(f, b'{"a":' * 100_000),
    "index-empty": lambda f: shards(f, {}),
    "index-map-is-list": lambda f: shards(f, b'{"weight_map": ["a.safetensors"]}'),
    "index-of-a-gigabyte": sparse,
    "link-outside": lambda f: linked(f, outside(f)),
    "link-up": lambda f: (outside(f), linked(f, "../outside.safetensors"))[1],
    "link-to-device": lambda f: linked(f, "/dev/zero"),
    "link-to-itself": lambda f: linked(f, "b.safetensors"),
    "link-to-nothing": lambda f: linked(f, "nothing"),
    "shard-is-a-pipe": piped,
    "shard-is-a-folder": foldered,
    "shard-with-payload": torch_shard,
    "shard-cut": lambda f: shards(f, MAP, **{"b.safetensors": save(STATE)[:-3]}),
    "shard-empty": lambda f: shards(f, MAP, **{"b.safetensors": b""}),
}


def with_code(folder):
    """A folder that carries code of a model, and asks for it to be run."""
    code = f"open({str(folder / 'marker')!r}, 'w')".encode()
    config = {"auto_map": {"AutoModel": "modeling_evil.Evil"}, "architectures": ["Evil\x1b[2J"]}
    files = {"modeling_evil.py": code, "config.json": json.dumps(config).encode()}
    return shards(folder, MAP, **files)


HARMLESS_FOLDERS = {
    "with-code": with_code,
    "config-damaged": lambda f: shards(f, MAP, **{"config.json": b'{"a": '}),
    "config-deep": lambda f: shards(f, MAP, **{"config.json": b"[" * 100_000}),
    "trainer-state-odd": lambda f: shards(
        f, MAP, **{"trainer_state.json": b'{"global_step": "x", "epoch": [1]}'}
    ),
}
