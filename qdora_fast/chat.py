"""Talk to what was trained: a run's adapter on its base, or the folder of a merged model.

The run's own chat template and stop tokens are used, so an answer here is the answer a
server gives. Several turns are kept until /new; greedy, streamed as it is generated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from qdora_fast import remote_code
from qdora_fast.backend import open_backend
from qdora_fast.errors import ConfigError
from qdora_fast.run_folder import RunFolder


def chat(path: str, *, once: str | None = None, max_new_tokens: int = 256) -> None:
    """Answer one message on standard output, or hold a conversation until end of input.

    Raises:
        ConfigError: `path` is neither a finished run nor a merged model's folder.
    """
    model, tokenizer, stop_ids = load(Path(path))
    if once is not None:
        click.echo(answer(model, tokenizer, [{"role": "user", "content": once}], stop_ids, max_new_tokens))
        return
    click.echo("A conversation with your model. /new starts over, Ctrl-D leaves.", err=True)
    messages: list[dict[str, str]] = []
    while True:
        try:
            said = click.prompt("you", prompt_suffix="> ", err=True).strip()
        except click.Abort:
            click.echo(err=True)
            return
        if said == "/new":
            messages = []
            continue
        messages.append({"role": "user", "content": said})
        reply = answer(model, tokenizer, messages, stop_ids, max_new_tokens, stream=True)
        messages.append({"role": "assistant", "content": reply})


def load(path: Path) -> tuple[Any, Any, frozenset[int]]:
    """Model, tokenizer and stop token ids of a run or of a merged model's folder."""
    if (path / "config.json").is_file():
        return _load_merged(path)
    folder = RunFolder.open(path)
    made = folder.read_json("model.json")
    if not folder.adapter.is_dir():
        raise ConfigError(f"{path} has no adapter yet: the run did not finish; run it again or --resume it")
    remote_code.require_allowed(made)
    unsloth = open_backend()
    from qdora_fast.base_tokenizer import read_tokenizer
    from qdora_fast.model import load_trained
    from qdora_fast.trainer import choose_precision

    config = folder.config()
    _, model = load_trained(made["base"], config, folder.adapter, precision=choose_precision(config.train))
    unsloth.FastLanguageModel.for_inference(model)
    return model, read_tokenizer(str(folder.adapter)), frozenset(made["stop_ids"])


def answer(
    model: Any,
    tokenizer: Any,
    messages: list[dict[str, str]],
    stop_ids: frozenset[int],
    max_new_tokens: int,
    *,
    stream: bool = False,
) -> str:
    """The model's greedy reply to a conversation."""
    import torch
    from transformers import TextStreamer

    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    batch = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    with torch.inference_mode():
        out = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(stop_ids),
            pad_token_id=tokenizer.pad_token_id,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None,
        )
    reply: str = tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return reply.strip()


def _load_merged(path: Path) -> tuple[Any, Any, frozenset[int]]:
    open_backend()
    from transformers import AutoModelForCausalLM

    from qdora_fast.base_tokenizer import read_tokenizer, stop_token_ids

    described = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if not described.get("architectures"):
        raise ConfigError(f"{path} is not a merged model: its config.json names no architecture")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="auto",
            device_map="auto",
            use_safetensors=True,
            trust_remote_code=remote_code.remote_code_allowed(),
        )
    except (OSError, ValueError) as error:
        raise remote_code.unreadable("safetensors weights", str(path), None, error, setting="") from None
    tokenizer = read_tokenizer(str(path))
    return model.eval(), tokenizer, stop_token_ids(model, tokenizer)
