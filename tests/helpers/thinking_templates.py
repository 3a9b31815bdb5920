"""Chat templates that know of reasoning, each in the way of one family, written for tests: switch, blocks, channels.

They say the same things as the real ones in other words, and no more than a test needs: users, answers, a system
message, tools only where a turn may hold a call.
"""

from __future__ import annotations

_TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
_LAST_QUESTION = (
    "{%- set last = namespace(q=-1) -%}{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}{%- set last.q = loop.index0 -%}{%- endif -%}{%- endfor -%}"
)
_SPLIT = (
    "{%- set thought = m.reasoning_content or '' -%}{%- set said = m.content -%}"
    "{%- if not thought and '</think>' in said -%}"
    "{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}"
    "{%- set said = said.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
)

HYBRID = (
    _LAST_QUESTION + "{%- for m in messages -%}{%- if m.role == 'assistant' -%}" + _SPLIT + "<|im_start|>assistant\n"
    "{% if loop.index0 > last.q and (loop.last or thought) -%}{{ '<think>\\n' + thought.strip('\\n') + "
    "'\\n</think>\\n\\n' }}{%- endif -%}{{ said.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{%- else -%}" + _TURN + "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}"
    "{%- endif -%}"
)
"""As Qwen3: on by default; off puts an empty block into the prompt; history loses its reasoning, and every block."""

OPENED = HYBRID.replace(
    "{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\\n\\n</think>\\n\\n' }}",
    "{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\\n\\n</think>\\n\\n' }}"
    "{%- else -%}{{ '<think>\\n' }}",
)
"""As Qwen3.5 and Nemotron: the prompt opens the reasoning."""

SYSTEM = (
    "{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}"
    "{%- set mode = '/think' if enable_thinking else '/no_think' -%}{%- set words = '' -%}"
    "{%- if messages[0].role == 'system' -%}{%- set words = messages[0].content -%}"
    "{%- if '/no_think' in words -%}{%- set mode = '/no_think' -%}"
    "{%- elif '/think' in words -%}{%- set mode = '/think' -%}{%- endif -%}"
    "{%- set words = words.replace('/no_think', '').replace('/think', '').rstrip() -%}{%- endif -%}"
    "{{ '<|im_start|>system\\nMode: ' + mode + '\\n' + words + '<|im_end|>\\n' }}"
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}"
    "{%- if mode == '/think' -%}{{ '<|im_start|>assistant\\n' + m.content.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{%- else -%}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' + m.content.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{%- endif -%}{%- elif m.role == 'user' -%}" + _TURN + "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
    "{%- if mode == '/no_think' -%}{{ '<think>\\n\\n</think>\\n' }}{%- endif -%}{%- endif -%}"
)
"""As SmolLM3: the mode stands in the system message, which may choose it; reasoning is spelled out in contents."""

ASKED = (
    "{%- if thinking -%}{{ '<|im_start|>system\\nThink first, inside <think></think>.<|im_end|>\\n' }}{%- endif -%}"
    "{%- for m in messages -%}" + _TURN + "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
"""As Granite: `thinking` puts an instruction in front; off by default."""

CHANNELS = (
    "{{ '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' }}"
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}"
    "{%- if m.thinking and loop.last -%}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif -%}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}"
    "{%- else -%}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start|>assistant' }}{%- endif -%}"
)
"""As gpt-oss: channels, an effort and no way to do without."""

NOTHINK = (
    "[gMASK]<sop>"
    + _LAST_QUESTION
    + "{%- for m in messages -%}{%- if m.role == 'assistant' -%}"
    + _SPLIT
    + "<|assistant|>"
    "{%- if loop.index0 > last.q and thought -%}{{ '\\n<think>' + thought.strip() + '</think>' }}"
    "{%- else -%}{{ '\\n<think></think>' }}{%- endif -%}{{ '\\n' + said.strip() }}"
    "{%- else -%}{{ '<|' + m.role + '|>\\n' + m.content }}"
    "{{- '/nothink' if m.role == 'user' and enable_thinking is defined and not enable_thinking else '' }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}"
    "{{- '\\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}{%- endif -%}"
)
"""As GLM-4.5: a word behind each question, no end of an answer but the next speaker."""

CUT = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}"
    "{%- else -%}{{ '<|' + m.role + '|>' + m.content }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|Assistant|><think>\\n' }}{%- endif -%}"
)
"""As DeepSeek-R1: the prompt opens the reasoning, and answers are printed without any."""

PARTS = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}"
    "{%- if m.content is string -%}{{ m.content }}{%- else -%}{%- for part in m.content -%}"
    "{{ '[THINK]' + part.thinking + '[/THINK]' if part.type == 'thinking' else part.text }}{%- endfor -%}{%- endif -%}"
    "{{ eos_token }}"
    "{%- else -%}{{ '[INST]' + m.content + '[/INST]' }}{%- endif -%}{%- endfor -%}"
)
"""As Magistral: reasoning is a part of the content."""

BUDGET = (
    "{%- if thinking_budget is defined and thinking_budget == 0 -%}"
    "{{ '<|im_start|>system\\nDo not think.<|im_end|>\\n' }}{%- endif -%}"
    "{%- for m in messages -%}{%- if m.role == 'assistant' and m.reasoning_content -%}"
    "{{ '<|im_start|>assistant\\n<seed:think>' + m.reasoning_content + '</seed:think>' + m.content + '<|im_end|>\\n' }}"
    "{%- else -%}" + _TURN + "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
"""As Seed-OSS: a budget, of which 0 is off."""

EFFORT = (
    "{%- set effort = reasoning_effort if reasoning_effort is defined else 'none' -%}"
    "{%- if reasoning_effort is defined and reasoning_effort not in ['none', 'high'] -%}"
    "{{ raise_exception('none or high') }}{%- endif -%}"
    "{{ '<|im_start|>system\\nEffort: ' + effort + '<|im_end|>\\n' }}"
    "{%- for m in messages -%}{%- if m.role == 'assistant' and m.reasoning_content -%}"
    "{{ '<|im_start|>assistant\\n<think>' + m.reasoning_content + '</think>' + m.content + '<|im_end|>\\n' }}"
    "{%- else -%}" + _TURN + "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
"""As newer Mistral models: an effort of two words, `none` by default."""

PLAIN = (
    "{%- for m in messages -%}" + _TURN + "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
"""Without any thinking."""

THINKING = {
    "hybrid": HYBRID,
    "opened": OPENED,
    "system": SYSTEM,
    "asked": ASKED,
    "channels": CHANNELS,
    "nothink": NOTHINK,
    "cut": CUT,
    "parts": PARTS,
    "budget": BUDGET,
    "effort": EFFORT,
}
