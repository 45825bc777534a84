"""Train a small vision transformer of timm on images of digits and save it as timm does.

    python examples/timm_classifier/train.py

writes ``digits/train`` and ``digits/test``, a folder of PNG files for every class, and
``digits/vit`` with ``config.json`` and ``model.safetensors``.
"""

import argparse
from pathlib import Path

import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.models import save_for_hf
from torch.nn import functional

ARCHITECTURE = "vit_tiny_patch16_224"
SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}


def save_images(out: Path) -> None:
    """Every digit as a PNG in the folder of its class; each fifth is for testing."""
    raw = load_digits()
    for index, (image, label) in enumerate(zip(raw.images, raw.target, strict=True)):
        folder = out / ("test" if index % 5 == 0 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (image * 255 / 16).astype("uint8")
        Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(
            folder / f"{index}.png"
        )


def main() -> None:
    """Write the images, train and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("digits"))
    options = parser.parse_args()
    save_images(options.out)

    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=10, **SIZES)
    config = timm.data.resolve_data_config({"input_size": (3, 16, 16)}, model=model)
    transform = timm.data.create_transform(**config, is_training=False)
    data = timm.data.ImageDataset(str(options.out / "train"), transform=transform)
    images, labels = zip(*data, strict=True)
    images, labels = torch.stack(images), torch.tensor(labels)

    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)
    for _ in range(options.steps):
        chosen = torch.randint(len(labels), (128,))
        loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = (model(images).argmax(-1) == labels).float().mean()
    model.pretrained_cfg["input_size"] = (3, 16, 16)
    save_for_hf(model, options.out / "vit", model_args=SIZES, safe_serialization=True)
    print(f"{options.out / 'vit'}: {right:.1%} of the training images are right")


if __name__ == "__main__":
    main()
