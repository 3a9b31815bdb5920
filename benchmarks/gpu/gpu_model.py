"""A Llama of any size with random weights, written straight in NF4: what a machine without a network can train.

Speed and memory do not need real weights. Unsloth's `get_peft_model` wants a model that Unsloth loaded, and Unsloth
loads from a folder; so the folder is made once, as bitsandbytes' own 4-bit checkpoint format (5.7 GB for 8B, of which
2.1 GB are embedding and head), and every arm's process reads it from the page cache in seconds. A bf16 checkpoint
would be 16 GB and each load would quantise it again.

One decoder layer is quantised on the device at a time and written as a shard of its own, so that the peak is a layer.
A tokenizer of four words lies beside it, because loaders ask for one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.options import GpuOptions
from qdora_fast.system import hardware
from qdora_fast.system.errors import DiskSpaceError

DONE = "complete"
DTYPE = torch.bfloat16


def checkpoint(options: GpuOptions) -> Path:
    """The folder of the random model, written now if it is not in the cache.

    Raises:
        DiskSpaceError: it would not fit.
    """
    sizes = (options.layers, options.hidden, options.intermediate, options.heads, options.kv_heads, options.vocabulary)
    folder = hardware.cache_folder() / "random-llama-nf4" / "-".join(map(str, (*sizes, options.seed)))
    if (folder / DONE).exists():
        return folder
    need = 1.1 * _bytes(options) / 2**30
    if hardware.free_disk_gib(folder) < need:
        raise DiskSpaceError(f"{folder}: the random model needs {need:.1f} GiB of disk; set QDORA_FAST_CACHE elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    shards = _write_weights(folder, options)
    index = {name: shard for shard, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(_config(options), indent=1))
    _write_tokenizer(folder)
    (folder / DONE).touch()
    return folder


def linear_shapes(options: GpuOptions) -> dict[str, tuple[int, int]]:
    """[out, in] of the seven linear layers of a decoder layer, by their names in the checkpoint."""
    kv = options.hidden // options.heads * options.kv_heads
    return {
        "self_attn.q_proj": (options.hidden, options.hidden),
        "self_attn.k_proj": (kv, options.hidden),
        "self_attn.v_proj": (kv, options.hidden),
        "self_attn.o_proj": (options.hidden, options.hidden),
        "mlp.gate_proj": (options.intermediate, options.hidden),
        "mlp.up_proj": (options.intermediate, options.hidden),
        "mlp.down_proj": (options.hidden, options.intermediate),
    }


def _bytes(options: GpuOptions) -> float:
    linears = sum(rows * columns for rows, columns in linear_shapes(options).values()) * options.layers
    return 0.52 * linears + 2 * 2 * options.vocabulary * options.hidden


def _write_weights(folder: Path, options: GpuOptions) -> dict[str, list[str]]:
    from safetensors.torch import save_file

    generator = torch.Generator(options.device).manual_seed(options.seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=options.device).mul_(0.02).to(DTYPE)

    shards: dict[str, list[str]] = {}
    for number in range(options.layers + 1):
        shard = f"model-{number:05d}.safetensors"
        tensors: dict[str, Tensor] = {}
        if number < options.layers:
            prefix = f"model.layers.{number}."
            for name, shape in linear_shapes(options).items():
                tensors |= _quantized(f"{prefix}{name}.weight", random(*shape))
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}{norm}.weight"] = torch.ones(options.hidden, dtype=DTYPE)
        else:
            tensors = {
                name: random(options.vocabulary, options.hidden)
                for name in ("model.embed_tokens.weight", "lm_head.weight")
            }
            tensors["model.norm.weight"] = torch.ones(options.hidden, dtype=DTYPE)
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, folder / shard, {"format": "pt"})
        shards[shard] = list(tensors)
    return shards


def _quantized(name: str, weight: Tensor) -> dict[str, Tensor]:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    return {name: packed, **{f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}}


def _config(options: GpuOptions) -> dict[str, Any]:
    longest = max(tokens for _, tokens, _ in options.shapes)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads,
        "head_dim": options.hidden // options.heads,
        "vocab_size": options.vocabulary,
        "max_position_embeddings": max(8192, longest),
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "quantization_config": {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": ["lm_head"],
        },
    }


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
