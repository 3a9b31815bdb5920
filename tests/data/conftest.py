"""Real fast tokenizers, trained in a moment on a few lines, so that no test needs a download."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is the capital of France? Paris is the capital of France.",
    "def add(a, b):\n    return a + b\n\nclass Cat:\n    pass\n",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\n### Input:\n### Response:\n system user assistant tool model",
    "भारत की राजधानी नई दिल्ली है। தமிழ் ஒரு செம்மொழி. తెలుగు ఒక ద్రావిడ భాష.",
    '{"name": "get_weather", "arguments": {"city": "Paris"}} {"temperature": 21}',
] * 4


def train_tokenizer(
    special: Iterable[str] = (), *, bos: str | None = None, adds_bos: bool = False, metaspace: bool = False
) -> Any:
    """A BPE of about 600 tokens with EOS `<eos>`, wrapped for Transformers; no chat template.

    Byte-level as GPT's and Llama 3's, or with `metaspace` marking spaces as Llama 2's and Mistral's do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(dict.fromkeys(["<eos>", *([bos] if bos else []), *special])),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if adds_bos:
        assert bos is not None
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token=bos)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """`train_tokenizer`, for tests that need special tokens of their own."""
    return train_tokenizer


@pytest.fixture
def base_tokenizer() -> Any:
    """A base model's tokenizer: EOS, no BOS, no chat template."""
    return train_tokenizer()
