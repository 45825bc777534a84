"""Train the module of module.py with Lightning's trainer, which saves a checkpoint every epoch.

python examples/lightning_run/train.py
"""

import argparse
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from module import Classifier, digits
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    """Write ``lightning_run/epoch=0-step=15.ckpt`` and so on."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("lightning_run"))
    options = parser.parse_args()

    lightning.seed_everything(0, verbose=False)
    loader = DataLoader(TensorDataset(*digits()), batch_size=128, shuffle=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=options.epochs,
        callbacks=[ModelCheckpoint(options.out, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(options.width), loader)
    print(*sorted(options.out.glob("*.ckpt")), sep="\n")


if __name__ == "__main__":
    main()
