"""Image classifiers of timm, torchvision and transformers on folders and arrays of images."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from torch.nn import functional

from landscape import Risk, load, resolve_task
from landscape.checkpoint import read_checkpoint
from landscape.data import materialise
from landscape.errors import CheckpointError, TaskError, UsageError
from landscape.initialisation import initial_moments
from landscape.loading import load_weights
from landscape_cli.app import run

CLASSES = ("cat", "dog", "eel")
VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}
MOBILE = {"width_mult": 0.1, "inverted_residual_setting": [[1, 8, 1, 1], [2, 8, 1, 2]]}


def pixels(count: int = 6, side: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of each of three classes."""
    for index, image in enumerate(pixels()):
        place = tmp_path / "images" / CLASSES[index // 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """The same images in one file."""
    np.savez(tmp_path / "images.npz", images=pixels(), labels=np.arange(6) // 2)
    return tmp_path / "images.npz"


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def risk_of(name: str, checkpoint: Path, dtype: torch.dtype = torch.float64, **settings: object):
    given = {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}
    task = resolve_task(name, given, checkpoint=checkpoint).task
    task.model.to(dtype)
    load_weights(task, task.model, read_checkpoint(checkpoint))
    return Risk(task, materialise(task.data), batch_size=4, dtype=dtype)


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Away from the symmetric start, with statistics of batch normalisation that matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith(("running_mean", "running_var")):
                buffer += 0.5 * torch.rand_like(buffer)
    return model.eval()


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    model = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=3, **VIT))
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    return tmp_path / "vit.pt"


@pytest.fixture
def mobile(tmp_path: Path) -> Path:
    model = shaken(torchvision.models.mobilenet_v2(num_classes=3, **MOBILE))
    torch.save(model.state_dict(), tmp_path / "mobile.pt")
    return tmp_path / "mobile.pt"


def expected_loss(model, transform, images=None) -> float:
    images = pixels() if images is None else images
    inputs = torch.stack([transform(Image.fromarray(image)) for image in images])
    with torch.no_grad():
        return float(functional.cross_entropy(model(inputs), torch.arange(6) // 2))


def test_timm_prepares_images_as_the_model_says(vit: Path, folder: Path, arrays: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **VIT).eval()
    model.load_state_dict(torch.load(vit))
    config = timm.data.resolve_data_config({"input_size": (3, 16, 16)}, model=model)
    expected = expected_loss(model, timm.data.create_transform(**config, is_training=False))
    assert config["mean"] == (0.5, 0.5, 0.5)  # Its own, not ImageNet's.
    settings = {"model": "vit_tiny_patch16_224", "size": 16, "options": VIT}
    for images in (folder, arrays):
        risk = risk_of("timm", vit, torch.float32, data=images, **settings)
        assert risk.loss() == pytest.approx(expected, rel=1e-5)


def test_torchvision_prepares_images_as_its_weights_need(
    mobile: Path, folder: Path, arrays: Path
) -> None:
    model = torchvision.models.mobilenet_v2(num_classes=3, **MOBILE).eval()
    model.load_state_dict(torch.load(mobile))
    preset = torchvision.models.MobileNet_V2_Weights.DEFAULT.transforms
    expected = expected_loss(model, preset(crop_size=16, resize_size=16))
    settings = {"model": "mobilenet_v2", "size": 16, "options": MOBILE}
    for images in (folder, arrays):
        risk = risk_of("torchvision", mobile, torch.float32, data=images, **settings)
        assert risk.loss() == pytest.approx(expected, rel=1e-5)


def test_inputs_of_floating_point_are_taken_as_they_are(vit: Path, tmp_path: Path) -> None:
    inputs = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) // 2
    np.savez(tmp_path / "inputs.npz", images=inputs.numpy(), labels=labels.numpy())
    settings = {"data": tmp_path / "inputs.npz", "options": VIT}
    risk = risk_of("timm", vit, model="vit_tiny_patch16_224", **settings)
    with torch.no_grad():
        expected = functional.cross_entropy(risk.model(inputs.double()), labels)
    assert risk.loss() == pytest.approx(float(expected), rel=1e-12)


def plain_task(tmp_path: Path, build: str) -> list[str]:
    """A task file with the same network on the same inputs."""
    (tmp_path / "task.py").write_text(
        "import torch\n"
        "from landscape import Task\n"
        "def build(batch):\n"
        f"    {build}\n"
        "    return Task(model=model, data=torch.load(batch), criterion='cross_entropy')\n"
    )
    return ["--task", str(tmp_path / "task.py"), "--set", f"batch={tmp_path / 'batch.pt'}"]


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_spectrum_and_volume_equal_those_of_the_plain_state_dict(
    library: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if library == "timm":
        checkpoint, name, options = request.getfixturevalue("vit"), "vit_tiny_patch16_224", VIT
        build = f"import timm; model = timm.create_model({name!r}, num_classes=3, **{options})"
    else:
        checkpoint, name, options = request.getfixturevalue("mobile"), "mobilenet_v2", MOBILE
        build = f"import torchvision; model = torchvision.models.{name}(num_classes=3, **{options})"
    settings = {"data": str(folder), "model": name, "size": 16, "options": options}
    risk = risk_of(library, checkpoint, torch.float32, **settings)
    [batch] = risk.data.batches
    torch.save(tuple(batch), tmp_path / "batch.pt")
    adapter = ["--task", library]
    for key, value in settings.items():
        adapter += ["--set", f"{key}={toml(value) if isinstance(value, dict) else value}"]
    results = []
    for kind, own in (("adapter", adapter), ("plain", plain_task(tmp_path, build))):
        out = tmp_path / kind
        common = [str(checkpoint), *own, "--dtype", "float32", "-o", str(out), "--quiet"]
        options = ["--operator", "ggn", "--method", "lanczos", "--top", "3", "--no-density"]
        assert run(["hessian", *common, *options]) == 0
        assert run(["volume", *common, "--method", "quadratic", "--cutoff", "0.01"]) == 0
        [spectrum] = out.glob("*.hessian.*.h5")
        [volume] = out.glob("*.volume.*.h5")
        results.append((load(spectrum), load(volume)))
    (a, b), (c, d) = results
    assert a.info.n_parameters == c.info.n_parameters == risk.n
    np.testing.assert_allclose(
        a.spectra["ggn"].eigenvalues, c.spectra["ggn"].eigenvalues, rtol=1e-4
    )
    logs = [r.estimates["quadratic"].log_volume for r in (b, d)]
    assert np.isfinite(logs[0]).all()
    np.testing.assert_allclose(*logs, rtol=1e-4)


class TestVit:
    """The architecture as transformers has it."""

    @pytest.fixture
    def model(self, tmp_path: Path):
        names = dict(enumerate(CLASSES))
        config = transformers.ViTConfig(
            image_size=16,
            patch_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            id2label=names,
            label2id={name: index for index, name in names.items()},
        )
        model = shaken(transformers.ViTForImageClassification(config))
        model.save_pretrained(tmp_path / "vit")
        processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
        processor.save_pretrained(tmp_path / "vit")
        return model

    def test_spectrum_and_volume_equal_those_of_the_plain_state_dict(
        self, model, folder: Path, tmp_path: Path
    ) -> None:
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "vit")
        images = [Image.fromarray(image) for image in pixels()]
        inputs = processor(images, return_tensors="pt")["pixel_values"]
        torch.save((inputs, torch.arange(6) // 2), tmp_path / "batch.pt")
        with torch.no_grad():
            expected = float(functional.cross_entropy(model(inputs).logits, torch.arange(6) // 2))
        build = (
            "import transformers; "
            f"config = transformers.AutoConfig.from_pretrained({str(tmp_path / 'vit')!r}); "
            "auto = transformers.AutoModelForImageClassification; "
            "net = auto.from_config(config, attn_implementation='eager'); "
            "model = torch.nn.Module(); model.net = net; "
            "model.forward = lambda x: net(pixel_values=x).logits"
        )
        torch.save({f"net.{k}": v for k, v in model.state_dict().items()}, tmp_path / "plain.pt")
        adapter = [str(tmp_path / "vit"), "--task", "hf-image-classifier"]
        adapter += ["--set", f"data={folder}"]
        plain = [str(tmp_path / "plain.pt"), *plain_task(tmp_path, build)]
        results = []
        for kind, own in (("adapter", adapter), ("plain", plain)):
            out = tmp_path / kind
            common = [*own, "--dtype", "float32", "-o", str(out), "--quiet"]
            options = ["--operator", "ggn", "--method", "lanczos", "--top", "3", "--no-density"]
            assert run(["hessian", *common, *options]) == 0
            assert run(["volume", *common, "--method", "quadratic", "--cutoff", "0.01"]) == 0
            [spectrum] = out.glob("*.hessian.*.h5")
            [volume] = out.glob("*.volume.*.h5")
            results.append((load(spectrum), load(volume)))
        (a, b), (c, d) = results
        assert a.info.loss == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(
            a.spectra["ggn"].eigenvalues, c.spectra["ggn"].eigenvalues, rtol=1e-4
        )
        logs = [r.estimates["quadratic"].log_volume for r in (b, d)]
        np.testing.assert_allclose(*logs, rtol=1e-4)

    def test_without_its_processor(self, model, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "vit" / "preprocessor_config.json").unlink()
        with pytest.raises(UsageError, match="nothing says how images become"):
            resolve_task("hf-image-classifier", {"data": str(folder)}, checkpoint=tmp_path / "vit")

    def test_a_class_that_the_model_does_not_have(self, model, folder: Path, tmp_path) -> None:
        (folder / "fox").mkdir()
        Image.fromarray(pixels(1)[0]).save(folder / "fox" / "a.png")
        with pytest.raises(UsageError, match="the network has 3 outputs"):
            resolve_task("hf-image-classifier", {"data": str(folder)}, checkpoint=tmp_path / "vit")


def test_names_of_classes_give_their_order(vit: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("eel\nant\ncat\ndog\n")
    settings = {"data": str(folder), "model": "vit_tiny_patch16_224", "size": 16, "options": VIT}
    task = resolve_task("timm", {**settings, "class_names": str(tmp_path / "names.txt")}).task
    assert task.model.num_classes == 4
    labels = [int(task.data[index][1]) for index in range(6)]
    assert labels == [2, 2, 3, 3, 0, 0]
    (tmp_path / "names.txt").write_text("eel\ncat\n")
    with pytest.raises(UsageError, match=r"has a class 'dog' that .* does not name"):
        resolve_task("timm", {**settings, "class_names": str(tmp_path / "names.txt")})


def test_only_the_examples_that_are_asked_for_are_opened(vit: Path, folder: Path) -> None:
    settings = {"data": str(folder), "model": "vit_tiny_patch16_224", "size": 16, "options": VIT}
    data = resolve_task("timm", settings).task.data
    taken = set(materialise(data, examples=2, seed=0).indices.tolist())
    for index, path in enumerate(sorted(folder.rglob("*.png"))):
        if index not in taken:
            path.write_bytes(b"broken")
    assert materialise(data, examples=2, seed=0).n_examples == 2
    with pytest.raises(TaskError, match=r"\.png cannot be read"):
        materialise(data)


def test_a_folder_of_timm_names_the_architecture(folder: Path, tmp_path: Path) -> None:
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "model_args": VIT,
        "pretrained_cfg": {"input_size": [3, 16, 16], "mean": [0.1] * 3, "std": [0.2] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    resolved = resolve_task("timm", {"data": str(folder)}, checkpoint=tmp_path / "model.pt")
    image, _ = resolved.task.data[0]
    assert image.shape == (3, 16, 16)
    assert -0.5 <= float(image.min()) < float(image.max()) <= 4.5 + 1e-6
    hostile = {**VIT, "checkpoint_path": str(tmp_path / "other.pt"), "pretrained": True}
    (tmp_path / "other.pt").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": hostile}))
    resolve_task("timm", {"data": str(folder)}, checkpoint=tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "hf-hub:a/b"}))
    with pytest.raises(UsageError, match="'hf-hub:a/b', which timm does not have"):
        resolve_task("timm", {"data": str(folder)}, checkpoint=tmp_path / "model.pt")


def test_grey_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "grey.npz", images=pixels()[..., 0], labels=np.arange(6) // 2)
    settings = {"model": "vit_tiny_patch16_224", "channels": 1, "size": 16, "options": VIT}
    data = resolve_task("timm", {"data": str(tmp_path / "grey.npz"), **settings}).task.data
    assert data[0][0].shape == (1, 16, 16)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_initial_weights_are_the_librarys(library: str, folder: Path, request) -> None:
    checkpoint = request.getfixturevalue("vit" if library == "timm" else "mobile")
    name, options = ("vit_tiny_patch16_224", VIT) if library == "timm" else ("mobilenet_v2", MOBILE)
    settings = {"data": folder, "model": name, "size": 16, "options": options}
    risk = risk_of(library, checkpoint, **settings)
    moments = initial_moments(risk.task, risk.space, seed=0, draws=4)
    spread = dict(zip(risk.space.names, moments.spread, strict=True))
    key, expected = ("pos_embed", 0.02) if library == "timm" else ("classifier.1.weight", 0.01)
    assert spread[key] == pytest.approx(expected, rel=0.1)


class TestWrongUse:
    @pytest.mark.parametrize(
        ("library", "settings", "message"),
        [
            ("timm", {}, "--set data=PATH is missing"),
            ("timm", {"data": "absent"}, "no such folder"),
            ("timm", {"data": "FOLDER"}, "--set model=NAME is missing"),
            ("timm", {"data": "FOLDER", "model": "resnett18"}, "Did you mean"),
            ("timm", {"data": "FOLDER", "model": "hf-hub:timm/resnet18"}, "neither an archi"),
            ("timm", {"data": "FOLDER", "model": "resnet18", "classes": 2}, "has 2 outputs"),
            ("timm", {"data": "FOLDER", "model": "resnet18", "options": 3}, "expected a table"),
            ("timm", {"data": "FOLDER", "model": "resnet18", "size": 0}, "at least 1"),
            ("torchvision", {"data": "FOLDER"}, "expected a classifier of torchvision"),
            ("torchvision", {"data": "FOLDER", "model": "resnet1"}, "Did you mean"),
            ("torchvision", {"data": "FOLDER", "model": "resnet18", "classes": 1}, "1 outputs"),
        ],
    )
    def test_settings(self, library: str, settings, message: str, folder: Path) -> None:
        given = {k: str(folder) if v == "FOLDER" else v for k, v in settings.items()}
        with pytest.raises(UsageError, match=message):
            resolve_task(library, given)

    def test_data_of_another_kind(self, tmp_path: Path) -> None:
        table = tmp_path / "table.csv"
        table.write_text("text,label\nto be,1\n")
        with pytest.raises(UsageError, match=r"no file of arrays; expected a folder") as caught:
            resolve_task("timm", {"data": str(table), "model": "resnet18"})
        assert "pickle" not in str(caught.value)

    def test_the_configuration_of_another_library(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
        settings = {"data": str(folder), "model": str(tmp_path)}
        with pytest.raises(UsageError, match=r"names no architecture of timm.*landscape inspect"):
            resolve_task("timm", settings)

    def test_options_that_the_model_does_not_take(self, folder: Path) -> None:
        for library in ("timm", "torchvision"):
            settings = {"data": str(folder), "model": "resnet18", "options": {"colour": 1}}
            with pytest.raises(TaskError, match="cannot build 'resnet18'"):
                resolve_task(library, settings)

    def test_empty_folders(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        settings = {"data": str(tmp_path / "empty"), "model": "resnet18"}
        with pytest.raises(UsageError, match="has no folders"):
            resolve_task("timm", settings)
        (tmp_path / "empty" / "cat").mkdir()
        with pytest.raises(UsageError, match="1 folders without images"):
            resolve_task("timm", settings)

    @pytest.mark.parametrize(
        ("stored", "message"),
        [
            ({"images": np.zeros((2, 4, 4), np.uint8)}, "no array 'labels'"),
            ({"images": np.zeros((2, 4, 4)), "labels": np.zeros(2, int)}, "expected uint8"),
            ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, "one whole"),
            ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2)}, "one whole"),
            ({"images": np.zeros((0, 4, 4), np.uint8), "labels": np.zeros(0, int)}, "no images"),
            ({"images": np.zeros((1, 4, 4), np.uint8), "labels": np.array([-1])}, "label -1"),
            ({"images": np.array([{}], object), "labels": np.zeros(1)}, "allow_pickle=False"),
        ],
        ids=str,
    )
    def test_arrays(self, tmp_path: Path, stored, message: str) -> None:
        np.savez(tmp_path / "a.npz", allow_pickle=True, **stored)
        with pytest.raises(UsageError, match=message):
            resolve_task("timm", {"data": str(tmp_path / "a.npz"), "model": "resnet18"})

    @pytest.mark.parametrize("library", ["timm", "torchvision"])
    def test_an_absent_library(self, library: str, folder: Path, monkeypatch) -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] == library]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UsageError, match=r"pip install 'landscape-geometry\[vision\]'"):
            resolve_task(library, {"data": str(folder), "model": "resnet18"})

    def test_weights_of_another_architecture(self, vit: Path, folder: Path) -> None:
        settings = {"data": folder, "model": "mobilenet_v2", "size": 16, "options": MOBILE}
        with pytest.raises(CheckpointError, match="does not fit the model"):
            risk_of("torchvision", vit, **settings)
