"""How the embedded base was made: `python -m qdora_fast.data.demo.pretrain OUT`, about a minute on one CPU core.

`pretrain` trains a byte-level BPE tokenizer and a two-block Llama on the sentences of `world.py`. No run needs this:
the result is shipped (`base.py`).

The training loop is plain PyTorch in fp32 with AdamW, always on the CPU and always on one thread, so one seed gives one
set of weights on one machine. Another kind of processor adds sums up in another order and gives other bits: a base made
there is as good, and is another base. To ship a new one, write it to an empty folder and put that in place of
`demo-base/`; runs made on the old one can then neither be resumed nor exported.
Texts are joined end to end and cut into windows, without padding. Tokens of a window do
see the text before their own; with short texts in random order that does no harm and
saves a mask.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from qdora_fast.data.demo.world import ALPACA_WORDS, sentences
from qdora_fast.system.manifest import write_manifest

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

OnStep = Callable[[int, int, float], None]
"""Called after each step with the step (from 1), the number of steps, and the loss in nats per token."""

_EOS, _PAD = "<eos>", "<pad>"
_THREADS = 1
_MAX_POSITIONS = 2048


@dataclass(frozen=True)
class Recipe:
    """Everything one may vary about the base. Sizes that feed a linear layer are multiples of 64 (NF4's block)."""

    vocab_size: int = 2048
    """Tokens, of which 256 are bytes: any UTF-8 text can be encoded."""
    hidden_size: int = 256
    intermediate_size: int = 256
    layers: int = 2
    heads: int = 8
    kv_heads: int = 4
    context: int = 64
    """Tokens per window."""
    batch_size: int = 12
    """Windows per step."""
    steps: int = 560
    learning_rate: float = 2e-3
    """Peak of AdamW's rate: linear rise over `warmup_steps`, constant, then linear fall over the second half."""
    warmup_steps: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Pretrained:
    """What `pretrain` did; stored beside the weights as part of recipe.json."""

    parameters: int
    tokens: int
    """Tokens seen, repetitions included."""
    first_loss: float
    """Nats per token at the first step."""
    last_loss: float


def pretrain(folder: Path, recipe: Recipe, on_step: OnStep | None = None) -> Pretrained:
    """Train tokenizer and model, and save them in `folder`: bf16 safetensors, tokenizer, configs, recipe.json.

    The same recipe gives the same files on the same machine. The caller's random state
    and thread count are left as they were.
    """
    import torch

    tokenizer = _train_tokenizer(recipe)
    with torch.random.fork_rng(devices=[]), _threads(_THREADS):
        torch.manual_seed(recipe.seed)
        model = _new_model(recipe, tokenizer)
        losses = _train(model, _windows(tokenizer, recipe), recipe, on_step)
    report = Pretrained(
        parameters=sum(p.numel() for p in model.parameters()),
        tokens=recipe.steps * recipe.batch_size * recipe.context,
        first_loss=round(losses[0], 4),
        last_loss=round(losses[-1], 4),
    )
    _save(folder, model, tokenizer, recipe, report)
    return report


def _train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE. <eos> ends each text; <pad> is its own token, so that a padded <eos> is never masked away."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[_EOS, _PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*sentences(recipe.seed), *[ALPACA_WORDS] * 50], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=_EOS,
        pad_token=_PAD,
        model_max_length=_MAX_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )


def _new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            max_position_embeddings=_MAX_POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _windows(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[torch.Tensor]:
    """Endless batches [batch_size, context] of token ids, cut from one edition of the corpus after another."""
    import torch

    size = recipe.batch_size * recipe.context
    pending: list[int] = []
    edition = recipe.seed
    while True:
        while len(pending) < size:
            for ids in tokenizer(sentences(edition)).input_ids:
                pending += [*ids, tokenizer.eos_token_id]
            edition += 1
        yield torch.tensor(pending[:size]).view(recipe.batch_size, recipe.context)
        pending = pending[size:]


def _train(
    model: LlamaForCausalLM, windows: Iterator[torch.Tensor], recipe: Recipe, on_step: OnStep | None
) -> list[float]:
    """AdamW without decay, on every token; the loss of each step is returned."""
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    losses = []
    model.train()
    for step in range(1, recipe.steps + 1):
        ids = next(windows)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if on_step:
            on_step(step, recipe.steps, losses[-1])
    return losses


def _rate(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at `step`, counted from 0."""
    return min(1.0, (step + 1) / recipe.warmup_steps, 2.0 * (recipe.steps - step) / recipe.steps)


def _save(
    folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, report: Pretrained
) -> None:
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    versions = {name: ".".join(version(name).split(".")[:2]) for name in ("torch", "transformers", "tokenizers")}
    origin = {"recipe": asdict(recipe), "versions": versions, "result": asdict(report)}
    (folder / "recipe.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch's thread count set for the time being."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(arguments: list[str] | None = None) -> None:
    """Make a base as the shipped one was made, with its manifest; `--steps` makes a poorer one sooner."""
    parser = argparse.ArgumentParser(prog="python -m qdora_fast.data.demo.pretrain", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    asked = parser.parse_args(arguments)

    def on_step(step: int, total: int, loss: float) -> None:
        if step % 40 == 0 or step == total:
            print(f"step {step} of {total}: loss {loss:.3f}", flush=True)

    report = pretrain(asked.out, Recipe(steps=asked.steps), on_step)
    write_manifest(asked.out, {"kind": "demo base"})
    print(f"{asked.out}: {report.parameters:,} parameters, loss {report.last_loss:.3f}")
    print("Another kind of processor gives other bits: this is the shipped base only where that one was made.")


if __name__ == "__main__":
    main()
