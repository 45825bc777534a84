"""Checkpoints written by the libraries that users write theirs with."""

import importlib
import warnings

import torch

from landscape.tasks._extras import optional


def library(name):
    """Import a library, also where its torchvision was built for another build of torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optional("transformers", "hf")
        return importlib.import_module(name)


SIZES = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "vocab_size": 11,
}
_TEXT_ONLY = ("vocab_size", "max_position_embeddings")
_IMAGE_SIZES = {name: size for name, size in SIZES.items() if name not in _TEXT_ONLY}
ARCHITECTURES = {
    "LlamaForCausalLM": ("LlamaConfig", SIZES | {"num_hidden_layers": 2}),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16},
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", SIZES),
    "BertForSequenceClassification": ("BertConfig", SIZES),
    "ViTForImageClassification": (
        "ViTConfig",
        {**_IMAGE_SIZES, "image_size": 8, "patch_size": 4, "num_channels": 1},
    ),
}


def hugging_face_model(architecture, seed=0):
    """A small model of transformers with random weights."""
    transformers = library("transformers")
    config_class, sizes = ARCHITECTURES[architecture]
    config = getattr(transformers, config_class)(**sizes, attn_implementation="eager")
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)  # No two alike, norms and biases included.
    return model


def answer_to(model, names):
    """Let a model's state dict have other names, given by its own: transformers renames some."""

    def rename(_module, state, _prefix, *_rest):
        for own, other in names.items():
            state[other] = state.pop(own)

    def restore(_module, state, _prefix, *_rest):
        for own, other in names.items():
            if other in state:
                state[own] = state.pop(other)

    model.register_state_dict_post_hook(rename)
    model.register_load_state_dict_pre_hook(restore)
    return model
