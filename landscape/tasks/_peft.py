"""PEFT adapters on a base model from a local folder: only the adapters are trainable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from landscape.errors import CheckpointError, TaskError, UsageError
from landscape.tasks._extras import optional
from landscape.tasks._files import existing, read_json
from landscape.tasks._hugging_face import (
    ADAPTER,
    CONFIG,
    EXTRA,
    HuggingFaceModel,
    quiet,
    read_config,
)


def load_adapted(
    auto: Any, folder: Path, base: object, options: dict[str, Any]
) -> HuggingFaceModel:
    """A base model with its weights, and adapters as the folder's configuration describes them.

    Args:
        auto: the ``AutoModelFor...`` class.
        folder: has an ``adapter_config.json``.
        base: folder of the base model, where the configuration does not name a local one.
        options: entries of the base's configuration to replace.

    Raises:
        UsageError: PEFT is not installed, or no base model.
        TaskError: the base lacks weights that the adapters do not bring.
    """
    peft = optional("peft", EXTRA)
    named = read_json(folder / ADAPTER).get("base_model_name_or_path")
    found = _base_folder(folder, base, named)
    config = read_config(found, options)
    model, report = auto.from_pretrained(
        str(found),
        config=config,
        attn_implementation="eager",
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        weights_only=True,
        output_loading_info=True,
    )
    settings = peft.PeftConfig.from_pretrained(str(folder))
    settings.inference_mode = False  # The adapters are what is measured.
    adapted = peft.get_peft_model(model, settings).eval()
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    missing = [n for n in report["missing_keys"] if not any(_same(n, name) for name in trained)]
    if missing:
        raise TaskError(
            f"the base model {found} lacks {len(missing)} of the weights of a {auto.__name__} "
            f"({', '.join(sorted(missing)[:3])}), and the adapters do not bring them"
        )
    return HuggingFaceModel(
        model=adapted,
        config=config,
        folders=(folder, found),
        files=(folder / ADAPTER, found / CONFIG, *_weight_files(found)),
        convert=_convert_adapter,
        initialise=_initialise_adapter,
    )


def _same(name: str, trained: str) -> bool:
    """Whether a base model's weight is one that the adapters replace as a whole."""
    module, _, leaf = name.rpartition(".")
    return f".{module}.modules_to_save." in f".{trained}" and trained.endswith(f".{leaf}")


def _base_folder(folder: Path, base: object, named: object) -> Path:
    if base is not None:
        found = existing("base", base, folder=True)
    else:
        places = [Path(str(named)), folder / str(named)] if named else []
        local = [place for place in places if (place / CONFIG).is_file()]
        if not local:
            raise UsageError(
                f"the adapters in {folder} are for the model {named!r}, which is not a folder "
                "here, and nothing is downloaded. Name its folder with --set base=FOLDER"
            )
        found = local[0]
    if not (found / CONFIG).is_file():
        raise UsageError(f"the base model {found} has no {CONFIG}; expected a model's folder")
    return found


def _weight_files(folder: Path) -> list[Path]:
    endings = (".safetensors", ".bin")
    return sorted(path for path in folder.iterdir() if path.suffix in endings and path.is_file())


def _convert_adapter(model: Any, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Put the adapters into the model, whose base weights it already has."""
    peft = optional("peft", EXTRA)
    state: Mapping[str, Tensor] = model.state_dict()
    if set(tensors) == set(state):
        return tensors
    with quiet():
        expected = peft.get_peft_model_state_dict(model)
    absent, foreign = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if absent or foreign:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])})"
            for what, names in (("are missing", absent), ("are unknown", foreign))
            if names
        ]
        raise CheckpointError(
            f"the checkpoint's adapters do not fit {ADAPTER}: {' and '.join(parts)} of "
            f"{len(expected)} expected tensors. Check that both belong together"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"the adapter {name!r} has shape {tuple(tensor.shape)}; expected "
                f"{tuple(expected[name].shape)} by {ADAPTER}"
            )
    with quiet():
        peft.set_peft_model_state_dict(model, dict(tensors))
    complete: Mapping[str, Tensor] = model.state_dict()
    return complete


def _initialise_adapter(model: nn.Module, generator: Generator) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator.initial_seed())
        for module in model.modules():
            # In the order in which PEFT draws them: A at random, B zero.
            reset = getattr(module, "reset_lora_parameters", None)
            if callable(reset):
                for adapter in module.lora_A:  # type: ignore[union-attr]
                    reset(adapter, True)
