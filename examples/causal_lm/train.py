"""Train a two-layer Llama on the characters of a play and save it as a Hugging Face folder.

    python examples/causal_lm/train.py

writes ``macbeth/checkpoint-20``, ``macbeth/checkpoint-200`` and so on, each with its configuration,
its tokenizer and its weights, and ``macbeth/held_out.txt``, the text that it was not trained on.
"""

import argparse
from importlib import resources
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 64


def character_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for every character of the text."""
    vocabulary = {character: index for index, character in enumerate(sorted(set(text)))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))  # noqa: S106
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("macbeth"))
    options = parser.parse_args()

    text = resources.files("landscape.tasks").joinpath("data/macbeth.txt").read_text("ascii")
    boundary = 9 * len(text) // 10
    tokenizer = character_tokenizer(text)
    tokens = torch.tensor(tokenizer(text[:boundary])["input_ids"])

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        intermediate_size=2 * options.width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)
    for step in range(1, options.steps + 1):
        starts = torch.randint(len(tokens) - CONTEXT, (16, 1))
        batch = tokens[starts + torch.arange(CONTEXT)]
        loss = model(input_ids=batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step in (options.steps // 10, options.steps):
            folder = options.out / f"checkpoint-{step}"
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            print(f"{folder}: training loss {loss.item():.3f} nats per character")
    (options.out / "held_out.txt").write_text(text[boundary:])


if __name__ == "__main__":
    main()
