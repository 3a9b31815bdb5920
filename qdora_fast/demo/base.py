"""A base model made on the spot, so that the whole path runs with nothing downloaded.

`demo_base` trains a byte-level BPE tokenizer and a two-block Llama on the sentences of
`world.py`, in 70 to 90 seconds on one CPU core, and keeps the result in a cache. It is
a real base in every respect that matters to the code around it: `AutoModelForCausalLM`
and `AutoTokenizer` load the folder, its linear layers fit NF4's blocks of 64, and it
knows things that tuning has to bring out. It is not a language model for any other use.

The training loop is plain PyTorch in fp32 with AdamW, always on the CPU and always on
one thread: sums are then added up in the same order whatever the machine has to offer,
one seed gives one set of weights. A second thread would save a third of the time on two
cores of its own, and cost several times the work where cores are shared.
Texts are joined end to end and cut into windows, without padding. Tokens of a window do
see the text before their own; with short texts in random order that does no harm and
saves a mask.

The folder's name is a hash of everything that shapes the weights (recipe, corpus, this
file, library versions), so a stale base is never found. It is written elsewhere and
renamed when complete: a folder that exists is a finished one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from qdora_fast.demo.world import ALPACA_WORDS, sentences
from qdora_fast.errors import ConfigError
from qdora_fast.hardware import cache_folder

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


def demo_base(cache: Path | None = None, *, recipe: Recipe | None = None, on_step: OnStep | None = None) -> Path:
    """The folder of the pretrained demo base, made once and then found again.

    Args:
        cache: folder that keeps it; by default $QDORA_FAST_CACHE, else ~/.cache/qdora_fast.
        recipe: another base than the usual one.
        on_step: progress of the training; not called when the base is already there.

    Raises:
        ConfigError: the cache folder cannot be written.
    """
    recipe = recipe or Recipe()
    root = cache or cache_folder()
    finished = root / f"demo-base-{fingerprint(recipe)[:16]}"
    if finished.is_dir():
        return finished
    try:
        root.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=f".{finished.name}-", dir=root)
    except OSError as error:
        raise ConfigError(
            f"cannot keep the demo base in {root}: {error.strerror}; set QDORA_FAST_CACHE to a folder you can write to"
        ) from error
    with staging:
        folder = Path(staging.name) / "base"
        pretrain(folder, recipe, on_step)
        _publish(folder, finished)
    return finished


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


def fingerprint(recipe: Recipe) -> str:
    """SHA-256 over all that decides the weights: recipe, corpus, this file, and library versions (major.minor)."""
    parts = {
        "recipe": asdict(recipe),
        "corpus": [ALPACA_WORDS, *sentences(recipe.seed)],
        "code": Path(__file__).read_text(encoding="utf-8"),
        "versions": _versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {name: ".".join(version(name).split(".")[:2]) for name in ("torch", "transformers", "tokenizers")}


def _publish(folder: Path, finished: Path) -> None:
    """Give the complete folder its name in one step; when another process was faster, its equal folder stays."""
    try:
        folder.rename(finished)
    except OSError:
        if not finished.is_dir():
            raise


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
    origin = {"recipe": asdict(recipe), "versions": _versions(), "result": asdict(report)}
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
