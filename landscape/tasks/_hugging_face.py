"""Models of Hugging Face's transformers, with or without PEFT adapters, from a local folder.

Nothing is ever downloaded and no code of a model's author runs: ``local_files_only``, never
``trust_remote_code``. The architecture comes from ``config.json``; the weights come from the
checkpoint, as with every other task.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

from landscape.errors import LandscapeError, TaskError, UsageError
from landscape.tasks import ADAPTERS, adapter_of
from landscape.tasks._common import initialise_by
from landscape.tasks._extras import optional
from landscape.tasks._files import existing, read_json

EXTRA = "hf"
CONFIG, ADAPTER = "config.json", "adapter_config.json"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


@dataclass(frozen=True, kw_only=True)
class HuggingFaceModel:
    """A model without its weights.

    Attributes:
        model: in eval mode, with eager attention; under PEFT only the adapters are trainable.
        config: its configuration.
        folders: where its tokenizer may lie, in order.
        files: the files that define it beside the checkpoint.
        convert: the task's ``convert_weights``.
        initialise: the task's ``initialise``.
    """

    model: nn.Module
    config: Any
    folders: tuple[Path, ...]
    files: tuple[Path, ...]
    convert: Callable[[nn.Module, dict[str, Tensor]], Mapping[str, Tensor]]
    initialise: Callable[[nn.Module, Generator], None]

    @property
    def vocabulary(self) -> int:
        """Number of tokens that it has embeddings for."""
        embeddings: Tensor = self.model.get_input_embeddings().weight  # type: ignore[operator]
        return embeddings.shape[0]

    @property
    def positions(self) -> int | None:
        """Longest sequence, where the configuration says."""
        own = self.config.get_text_config()
        found = getattr(own, "max_position_embeddings", None)
        if not isinstance(found, int) or found <= 0:
            return None
        # RoBERTa's family counts its positions from behind the padding token's index.
        table = next((m for n, m in self.model.named_modules() if n.endswith(_POSITIONS)), None)
        padding = getattr(table, "padding_idx", None)
        return found if padding is None else found - padding - 1


_POSITIONS = "embeddings.position_embeddings"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's notices and progress bars; its settings are restored afterwards."""
    logging = optional("transformers.utils.logging", EXTRA)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Of these libraries about each other, which no user can mend.
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def model_folder(model: object, checkpoint: object) -> Path:
    """The folder with the model's configuration: the one named, else the checkpoint's own.

    Raises:
        UsageError: neither has a ``config.json`` or ``adapter_config.json``.
    """
    if model is not None:
        folder = existing("model", model, folder=True)
        if _has_config(folder):
            return folder
        raise UsageError(
            f"setting model={str(model)!r} has no {CONFIG} and no {ADAPTER}; expected a folder "
            "written by save_pretrained()"
        )
    if checkpoint is not None:
        path = Path(checkpoint)  # type: ignore[arg-type]
        for folder in (path, path.parent):
            if folder.is_dir() and _has_config(folder):
                return folder
    raise UsageError(
        f"there is no {CONFIG} beside the checkpoint, so the architecture is unknown. Name a "
        "folder written by save_pretrained() with --set model=FOLDER, or give it as checkpoint"
    )


def check_architecture(task: str, folder: Path, checkpoint: object) -> None:
    """Refuse a checkpoint whose own configuration names a class that another adapter is for.

    A configuration of another place says nothing of the checkpoint's head, nor does that of the
    model that PEFT adapters are for.

    Args:
        task: the adapter's name.
        folder: has the configuration.
        checkpoint: as given by the command.

    Raises:
        TaskError: it does.
    """
    if checkpoint is None or (folder / ADAPTER).is_file():
        return
    own = Path(checkpoint).resolve()  # type: ignore[arg-type]
    listed = read_json(folder / CONFIG).get("architectures")
    classes = [str(name) for name in listed] if isinstance(listed, list) else []
    fitting = adapter_of(classes)
    if fitting in (None, task) or folder.resolve() not in (own, own.parent):
        return
    expected = " or ".join(f"...{end}" for end in ADAPTERS[task].architectures)
    raise TaskError(
        f"the checkpoint is {', '.join(classes)}, by {folder / CONFIG}, without the outputs that "
        f"{task} measures; expected {expected}. Use --task {fitting}"
    )


def _has_config(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (ADAPTER, CONFIG))


def load_model(kind: str, folder: Path, *, base: object = None, **options: Any) -> HuggingFaceModel:
    """Build a model of an ``AutoModelFor...`` class from a local folder.

    Args:
        kind: the name of that class.
        folder: has a ``config.json``, or an ``adapter_config.json`` of PEFT.
        base: folder of the model that adapters are for, where their configuration does not name a
            local one.
        options: entries of the configuration to replace, such as ``num_labels``.

    Raises:
        UsageError: transformers or peft is not installed, or no base model.
        TaskError: the library cannot build the model, or only by running its author's code.
    """
    auto = getattr(optional("transformers", EXTRA), kind)
    try:
        with quiet():
            if (folder / ADAPTER).is_file():
                from landscape.tasks._peft import load_adapted

                return load_adapted(auto, folder, base, options)
            return _plain(auto, folder, options)
    except LandscapeError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            text = "its architecture is code that comes with it, which is never run"
        raise TaskError(
            f"transformers cannot build a {kind} from {folder} ({type(error).__name__}: {text}). "
            f"Check {CONFIG}, and that the installed version knows the architecture"
        ) from error


def read_config(folder: Path, options: dict[str, Any]) -> Any:
    """A folder's configuration, with some entries replaced.

    Raises:
        UsageError: it is not JSON.
        TaskError: the model is quantised.
    """
    # Known to be JSON, so that the library need not look further.
    read_json(folder / CONFIG)
    auto = optional("transformers", EXTRA).AutoConfig
    config = auto.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False, **options
    )
    config.use_cache = False
    # Plain operators only: the fused ones lack float64 or second derivatives.
    config._experts_implementation = "eager"
    if getattr(config, "quantization_config", None) is not None:
        raise TaskError(
            f"{folder} is a quantised model, whose loss has no derivatives in its stored integers; "
            "expected floating-point weights. Measure the model that it was quantised from"
        )
    return config


def _plain(auto: Any, folder: Path, options: dict[str, Any]) -> HuggingFaceModel:
    config = read_config(folder, options)

    def build() -> nn.Module:
        with quiet():
            made: nn.Module = auto.from_config(
                config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
            )
        return made.eval()

    return HuggingFaceModel(
        model=build(),
        config=config,
        folders=(folder,),
        files=(folder / CONFIG,),
        convert=_convert,
        initialise=initialise_by(build),
    )


def _convert(model: Any, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """A checkpoint's tensors under the model's names.

    Files of other releases of the library, or of the model without its head, name the same weights
    otherwise; the library's own loader knows how.
    """
    if set(tensors) <= set(model.state_dict()):
        return tensors
    wide = reduce(torch.promote_types, {t.dtype for t in tensors.values() if t.is_floating_point()})
    with quiet():
        loaded, report = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(tensors),
            dtype=wide,
            output_loading_info=True,
            local_files_only=True,
        )
    if any(report.values()):
        return tensors  # Loading them tells what does not fit.
    state: Mapping[str, Tensor] = loaded.state_dict()
    return state


def load_tokenizer(found: HuggingFaceModel, tokenizer: object) -> Any:
    """The model's tokenizer, from a local folder.

    Args:
        found: the model.
        tokenizer: another folder, where the model's has none.

    Raises:
        UsageError: no tokenizer there.
        TaskError: the library cannot read it, or only by running its author's code.
    """
    folders = found.folders
    if tokenizer is not None:
        folders = (existing("tokenizer", tokenizer, folder=True),)
    for folder in folders:
        if any((folder / name).is_file() for name in _TOKENIZER_FILES):
            break
    else:
        raise UsageError(
            f"{' and '.join(map(str, folders))} has no tokenizer, which a text needs. Save it "
            "there with tokenizer.save_pretrained(), name its folder with --set tokenizer=FOLDER, "
            "or give tokens (.npy, .npz, .safetensors) instead of a text"
        )
    auto = optional("transformers", EXTRA).AutoTokenizer
    try:
        with quiet():
            return auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise TaskError(
            f"transformers cannot read the tokenizer in {folder} "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error


class _KeepDouble(TorchFunctionMode):
    """Leave out casts to float32, written for half precision, of what is float64 already."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            if func is Tensor.to and torch.float32 in (*args[1:], kwargs.get("dtype")):
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


def logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The model's logits; in float64 throughout where its weights are float64."""
    double = next(model.parameters()).dtype == torch.float64
    with _KeepDouble() if double else contextlib.nullcontext():
        found: Tensor = model(**inputs).logits
    return found
