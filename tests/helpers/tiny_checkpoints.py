"""Tiny models and adapters on disk for the tests of saving, merging and proving: real libraries, random weights.

Two layers of width 64, so that NF4 blocks are whole and a test takes milliseconds. Adapters are written by PEFT
itself; B is random and magnitudes are moved by 10 %, as if training had happened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

VOCABULARY = 96
LINEARS = 14
"""Linear layers inside the two blocks."""


def save_base(
    folder: Path,
    *,
    family: str = "llama",
    dtype: torch.dtype = torch.bfloat16,
    tied: bool = False,
    shard_size: str = "60KB",
    seed: int = 0,
) -> Path:
    """A random base model, in several shards unless `shard_size` is large."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
    }
    kinds: dict[str, Any] = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}
    model_class, config_class = kinds[family]
    model = model_class(config_class(**sizes))
    for parameter in model.parameters():  # norms and biases must not be all ones and zeros
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def adapt(model: Any, *, moved: float = 0.1, b_std: float = 0.05, **lora: Any) -> Any:
    """Put an adapter on a loaded model and move it away from its start."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    adapted = get_peft_model(model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "lora_B" in name:
            parameter.data = noise.to(parameter.dtype) * b_std
        elif "lora_magnitude_vector" in name:
            parameter.data *= 1 + moved * noise.clamp(-3, 3)
        elif "modules_to_save" in name:
            parameter.data += noise.to(parameter.dtype) * 0.05
    return adapted


def save_adapter_for(base: Path, folder: Path, **lora: Any) -> dict[str, torch.Tensor]:
    """Write an adapter for `base` with PEFT; return PEFT's own merge of it, in fp32."""
    adapted = adapt(load(base), **lora)
    adapted.save_pretrained(folder)
    return dict(adapted.merge_and_unload().state_dict())


def load(folder: Path) -> Any:
    """Open a model folder in fp32, as any reader would."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def load_in_4bit(folder: Path, dtype: torch.dtype) -> Any:
    """The same in NF4, with bitsandbytes' lossy CPU repacking switched off."""
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=quantization)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def linears(model: Any) -> list[str]:
    """Names of the linear layers inside the blocks of a model."""
    return [name for name, module in model.named_modules() if ".layers." in name and hasattr(module, "in_features")]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def edit(folder: Path, change: Any) -> None:
    """Apply `change(tensors)` to every safetensors file of a folder, in place."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})


def made_rows(*lengths: int, vocabulary: int = VOCABULARY) -> list[dict[str, list[int]]]:
    """Rows of these lengths whose second half is trained."""
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": ids, "labels": [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]} for ids in texts]
