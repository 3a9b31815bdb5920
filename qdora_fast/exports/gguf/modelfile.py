"""Ollama's Modelfile: the file, the context length, the stop tokens, and the prompt where it is surely the trained one.

Ollama does not run the Jinja template that lies in a GGUF. It compares it with those it knows and, where none is near,
sends the bare prompt. So a TEMPLATE, in Go's syntax, is written for the two templates that this package brings itself;
for a model's own it is left out, with a word. BOS is never in it: Ollama puts it there when the file says so. There is
no ADAPTER line, ever: a DoRA adapter taken as LoRA is another model.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from qdora_fast.data.tokenize.chat_text import templates_of
from qdora_fast.data.tokenize.templates import THINK, bundled_name

USUAL_CONTEXT = 4096
"""Tokens. Ollama's own default; a model trained on shorter rows keeps what its base can do."""

WITHOUT_TEMPLATE = (
    "the model's own chat template is Jinja, which Ollama does not run: it takes its own copy of those it knows, else "
    "sends the bare prompt (see `ollama show --template NAME`). llama.cpp --jinja runs the one in the file."
)

_TEMPLATES = {
    "alpaca": """\
{{ if .System }}{{ .System }}

{{ end }}Below is an instruction that describes a task. Write a response that appropriately completes the request.

{{ range .Messages }}{{ if eq .Role "user" }}### Instruction:
{{ .Content }}

{{ else if eq .Role "assistant" }}### Response:
{{ .Content }}EOS

{{ end }}{{ end }}### Response:
""",
    "chatml": """\
{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ .Content }}<|im_end|>EOS
{{ end }}{{ end }}<|im_start|>assistant
""",
}


def modelfile(file: str, tokenizer: Any, stop_ids: Collection[int], *, longest_row: int, most_positions: int) -> str:
    """The text of a Modelfile that lies beside `file`.

    Args:
        tokenizer: the run's, with its chat template.
        stop_ids: token ids that end an answer.
        longest_row: `model.max_length` of the run, in tokens.
        most_positions: context length of the base, in tokens.
    """
    context = min(most_positions, max(longest_row, USUAL_CONTEXT))
    lines = [
        "# ollama create NAME -f Modelfile && ollama run NAME",
        f"FROM ./{file}",
        f"PARAMETER num_ctx {context}",
        *(f"PARAMETER stop {_text(token)}" for token in stop_tokens(tokenizer, stop_ids)),
    ]
    template = go_template(tokenizer)
    if template is None:
        lines.append(f"# No TEMPLATE: {WITHOUT_TEMPLATE}")
    else:
        lines.append("# Conversations as they were trained; tools are not rendered.")
        lines.append(f'TEMPLATE """{template}"""')
    return "\n".join(lines) + "\n"


def go_template(tokenizer: Any) -> str | None:
    """The tokenizer's chat template in Go's syntax; None where it is not one of those that this package brings."""
    name = bundled_name(templates_of(tokenizer).get("default"))
    if name is None:
        return None
    name = name.removesuffix(THINK)  # reasoning of earlier answers is not sent back
    doubled = name == "chatml" and tokenizer.eos_token == "<|im_end|>"
    return _TEMPLATES[name].replace("EOS", "" if doubled else tokenizer.eos_token)


def stop_tokens(tokenizer: Any, stop_ids: Collection[int]) -> list[str]:
    """The texts of the tokens that end an answer."""
    return [str(tokenizer.convert_ids_to_tokens(each)) for each in sorted(stop_ids)]


def _text(token: str) -> str:
    return f'"""{token}"""' if '"' in token else f'"{token}"'
