"""One training step of Unsloth's real GPU code on a machine without a GPU, as a process of its own.

    python tests/helpers/unsloth_fast_path.py FAMILY [--stack unsloth|plain] [--engine off|on] [--out FILE] ...

Unsloth's hand-written path (llama, mistral, qwen2, qwen3, gemma, gemma2) is where our engine replaces `apply_qkv`,
`apply_o` and `mlp.forward`; its CPU backend has none of these. Unsloth has a switch for its own CI, UNSLOTH_ALLOW_CPU,
that imports the GPU code anyway, and Triton can interpret kernels. `open_fast_path` adds what is missing between the
two: a card to ask about, a device index where a CPU has none, bitsandbytes' own dequantisation. The model code, the
Triton kernels for RMSNorm, RoPE, SwiGLU and GeGLU, and the installation of adapters stay Unsloth's own.

It is a process, not a fixture, because Unsloth replaces parts of transformers and peft when imported: the same step
by transformers and peft alone (`--stack plain`) needs another process. Both make the same weights and the same
adapter from one seed, so that losses and gradients can be compared; the last line printed is one JSON object.

What it does not do: bf16 (wrong under Triton's interpreter), 512 tokens or more (Unsloth would pin memory), compiled
blocks, CUDA-graph decoding, Qwen3's fused norm and RoPE (CUDA only), or any statement about speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
HIDDEN, INTERMEDIATE, HEADS = 64, 128, 4
VOCABULARY, WORDS = 128, 96  # room for tokens that a family's tokenizer class adds by itself
MAX_LENGTH = 256
ADAPTER: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="unsloth-fast-path-") as scratch:
        clock = [time.perf_counter()]
        load = load_unsloth if arguments.stack == "unsloth" else load_plain
        model = load(Path(scratch), arguments)
        move_adapter(model)
        engine = install_engine(model) if arguments.engine == "on" else None
        clock.append(time.perf_counter())
        # Before the step: what decoding leaves behind, made in inference mode, must not spoil training.
        generated = generate(model, arguments) if arguments.generate else None
        clock.append(time.perf_counter())
        loss, gradients = step(model, arguments)
        clock.append(time.perf_counter())
        read = row_loss(model, arguments) if arguments.row_loss else None
    if arguments.out:
        save_file(gradients, arguments.out)
    result = {
        "family": arguments.family,
        "stack": arguments.stack,
        "loss": loss,
        "gradient_norms": {name: gradient.norm().item() for name, gradient in gradients.items()},
        "hooks": hooks_of(model),
        "engine": engine,
        "generated": generated,
        "row_loss": read,
        "seconds": {name: round(clock[i + 1] - clock[i], 1) for i, name in enumerate(("load", "generate", "step"))},
    }
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--stack", choices=("unsloth", "plain"), default="unsloth")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16")
    parser.add_argument("--four-bit", action="store_true", help="NF4 with double quantisation")
    parser.add_argument("--method", choices=("dora", "lora"), default="dora")
    parser.add_argument("--engine", choices=("off", "on"), default="off")
    parser.add_argument("--tokens", type=int, default=16, help="tokens in each of the two rows")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--padding-free", action="store_true", help="both rows as one [1, total]; plain keeps two rows")
    parser.add_argument("--generate", type=int, default=0, help="tokens to generate greedily, before the step")
    parser.add_argument("--row-loss", action="store_true", help="the loss of the first row as evaluation takes it")
    parser.add_argument("--out", type=Path, help="safetensors file for the gradients")
    arguments = parser.parse_args()
    if arguments.padding_free and arguments.family == "gemma2":
        parser.error("without flash-attention Unsloth's gemma2 ignores packed_seq_lengths; its trainer never sends any")
    return arguments


def open_fast_path(scratch: Path) -> Any:
    """Import Unsloth's GPU code on a CPU and return its FastLanguageModel.

    Nothing of Unsloth, Triton, transformers or peft may have been imported before.
    """
    os.environ |= {
        "UNSLOTH_ALLOW_CPU": "1",
        "TRITON_INTERPRET": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(scratch / "compiled"),
        "UNSLOTH_RMSNORM_MULTIROW": "0",  # a kernel for rows as narrow as ours, which real models do not take
        "TORCHDYNAMO_DISABLE": "1",  # gemma2 would try to compile its attention for CUDA
        "HF_HUB_OFFLINE": "1",
    }
    card = SimpleNamespace(name="none", total_memory=2**34, major=8, minor=0)
    torch.cuda.get_device_properties = lambda *_: card
    torch.cuda.current_device = lambda: 0
    torch.cuda.mem_get_info = lambda *_: (2**34, 2**34)

    import unsloth
    from unsloth.models import llama

    # These names were copied from module to module by `from ... import`, so each copy is replaced.
    replacements = {
        "get_current_device": lambda: "cpu",
        "DEVICE_COUNT": 1,
        "DEVICE_TYPE_TORCH": "cpu",
        "ALLOW_BITSANDBYTES": True,
        "fast_dequantize": _dequantize,
        "fast_gemv": _gemv,
    }
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "unsloth" and module is not None:
            for attribute in replacements.keys() & vars(module).keys():
                setattr(module, attribute, replacements[attribute])
    # A CPU tensor has no device index; the tables of sines and cosines are kept by index.
    llama._PerDeviceRopeCache._ensure_rope_cache = _rope_slot
    return unsloth.FastLanguageModel


def _dequantize(weight: torch.Tensor, state: Any = None, dtype: Any = None, **_buffers: Any) -> torch.Tensor:
    """Unsloth's `fast_dequantize`, by bitsandbytes; both give [in, out] for a transposed packed weight."""
    from bitsandbytes.functional import dequantize_4bit

    return weight if state is None else dequantize_4bit(weight, state).to(dtype or state.dtype)


def _gemv(x: torch.Tensor, weight: torch.Tensor, state: Any, out: torch.Tensor | None = None) -> torch.Tensor:
    """Unsloth's `fast_gemv`, one token of decoding: [1, 1, in] @ [in, out] -> [1, 1, out]."""
    return torch.matmul(x, _dequantize(weight, state, dtype=x.dtype).t(), out=out)


def _rope_slot(cache: Any, _index: int | None) -> int:
    """Make the table of slot 0 if it is missing or too short, and name that slot whatever device was asked for."""
    if cache._rope_cache_stale(cache.multi_gpu_cos_cached[0], 0):
        size, rows, dtype = cache.current_rope_size, cache._rope_cache_rows(), cache._rope_cache_dtype
        with cache._rope_build_mode():
            cache._set_cos_sin_cache(seq_len=rows, device=torch.device("cpu", 0), dtype=dtype)
        cache.current_rope_size = size
        cache._rope_cache_versions[0] = cache._rope_cache_version
    return 0


def load_unsloth(scratch: Path, arguments: argparse.Namespace) -> Any:
    fast = open_fast_path(scratch)
    base = write_base(scratch / "base", arguments.family)
    model, _ = fast.from_pretrained(
        str(base), max_seq_length=MAX_LENGTH, dtype=DTYPES[arguments.dtype], load_in_4bit=arguments.four_bit
    )
    keep_nf4_exact(model)
    checkpointing = {"use_gradient_checkpointing": arguments.checkpointing}
    model = fast.get_peft_model(model, use_dora=arguments.method == "dora", **ADAPTER, **checkpointing)
    return fast.for_training(model, **checkpointing)


def load_plain(scratch: Path, arguments: argparse.Namespace) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base = write_base(scratch / "base", arguments.family)
    dtype = DTYPES[arguments.dtype]
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, quantization_config=nf4 if arguments.four_bit else None, attn_implementation="eager"
    )
    keep_nf4_exact(model)
    model = get_peft_model(model, LoraConfig(use_dora=arguments.method == "dora", **ADAPTER))
    if arguments.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def keep_nf4_exact(model: torch.nn.Module) -> None:
    """Switch off the lossy repacking that bitsandbytes does on some CPUs."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def move_adapter(model: torch.nn.Module) -> None:
    """As if training had happened: A and B drawn anew, magnitudes moved by about 10 %."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            if "magnitude" in name:
                parameter.data *= 1 + 0.1 * noise.clamp(-3, 3)
            else:
                parameter.data.copy_(noise * (0.05 if "lora_B" in name else HIDDEN**-0.5))


def install_engine(model: Any) -> dict[str, Any]:
    from qdora_fast.engine import install

    report = install(model, impl="torch")
    return json.loads(json.dumps(dataclasses.asdict(report), default=str))


def hooks_of(model: torch.nn.Module) -> dict[str, int]:
    """How many layers have something other than the default at each of Unsloth's three hooks."""
    blocks = [vars(m)["_modules"] for m in model.modules() if hasattr(m, "self_attn") and hasattr(m, "mlp")]
    counts = {"layers": len(blocks), "mlp": sum("forward" in vars(block["mlp"]) for block in blocks)}
    for hook in ("apply_qkv", "apply_o"):
        found = [getattr(vars(block["self_attn"]).get(hook), "__name__", None) for block in blocks]
        counts[hook] = sum(name not in (None, f"original_{hook}") for name in found)
    return counts


def step(model: Any, arguments: argparse.Namespace) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one forward and backward: of every adapter parameter and of the embeddings' output."""
    seen = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        output.requires_grad_()
        output.retain_grad()
        seen.append(output)

    handle = model.get_input_embeddings().register_forward_hook(keep)
    loss = model(**batch(arguments), use_cache=False).loss
    loss.backward()
    handle.remove()
    gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    gradients["embeddings"] = seen[0].grad.float().reshape(-1, HIDDEN).contiguous()
    return loss.item(), gradients


def batch(arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Two rows, the first third of each unsupervised; for Unsloth's padding-free form both in one row."""
    ids = torch.randint(2, WORDS, (2, arguments.tokens), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[:, : max(1, arguments.tokens // 3)] = -100
    if not arguments.padding_free or arguments.stack == "plain":
        return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    return {
        "input_ids": ids.reshape(1, -1),
        "labels": labels.reshape(1, -1),
        "position_ids": torch.arange(arguments.tokens).repeat(2)[None],
        "packed_seq_lengths": torch.tensor([arguments.tokens] * 2, dtype=torch.int32),
    }


def generate(model: Any, arguments: argparse.Namespace) -> list[int]:
    """Greedy continuation of the first row, through Unsloth's own decoding where it is loaded."""
    fast = sys.modules["unsloth"].FastLanguageModel if arguments.stack == "unsloth" else None
    ids = batch(arguments)["input_ids"].reshape(2, -1)[:1]
    model = fast.for_inference(model) if fast else model.eval()
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=arguments.generate, do_sample=False
    )
    if fast:
        fast.for_training(model, use_gradient_checkpointing=arguments.checkpointing)
    model.train()
    return output[0, arguments.tokens :].tolist()


def row_loss(model: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """The loss of a row by `evaluation.heldout`, and at how many positions at once the head made logits for it."""
    from qdora_fast.evaluation.heldout import row_losses

    made = [0]
    inner = model.get_base_model()
    watch = inner.get_output_embeddings().register_forward_hook(lambda _m, _i, logits: made.append(logits.shape[1]))
    model.eval()
    if arguments.stack == "unsloth":
        sys.modules["unsloth"].FastLanguageModel.for_inference(model)
    row = {name: batch(arguments)[name].reshape(2, -1)[0].tolist() for name in ("input_ids", "labels")}
    (loss,) = row_losses(model, [row])
    watch.remove()
    return {"total": loss.total, "tokens": loss.tokens, "positions": max(made)}


def write_base(folder: Path, family: str) -> Path:
    """A random model of two layers, with a tokenizer of one token a word. Unsloth, if wanted, is imported by now."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        head_dim=HIDDEN // HEADS,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:  # norms and biases must not be all ones and zeros
            parameter.data += 0.05 * noise
        else:
            parameter.data = noise * 0.8 / math.sqrt(parameter.shape[-1])
    model.save_pretrained(folder)
    words = {"<eos>": 0, "<pad>": 1} | {f"w{index}": index for index in range(2, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
