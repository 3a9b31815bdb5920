"""What a run tells its user, all in one place: one line a decision, warnings where they matter.

Only this folder and the command line print. Modules return what they decided and why; here it becomes text. Nothing is
decided here.
"""

from qdora_fast.show.chatting import CHAT_HELP, about_answer, aside, conversation, exchange, opening, serving
from qdora_fast.show.console import json_line, new_console
from qdora_fast.show.evaluating import answering, asking_benchmark, evaluation, evaluations, review_recorded
from qdora_fast.show.importing import adapter_fits, adapter_found, adapter_imported
from qdora_fast.show.rows import counting_rows, preflight, prepared_data, quality, reviewed, tokenizer_differs
from qdora_fast.show.running import (
    adapter,
    chosen,
    code_elsewhere,
    dry_run,
    engine,
    engine_afterwards,
    exported,
    finished,
    not_evaluated,
    note,
    own_code,
    presets,
    probed,
    recipe,
    settled,
    started,
    trained,
    writing,
)

__all__ = [
    "CHAT_HELP",
    "about_answer",
    "adapter",
    "adapter_fits",
    "adapter_found",
    "adapter_imported",
    "answering",
    "aside",
    "asking_benchmark",
    "chosen",
    "code_elsewhere",
    "conversation",
    "counting_rows",
    "dry_run",
    "engine",
    "engine_afterwards",
    "evaluation",
    "evaluations",
    "exchange",
    "exported",
    "finished",
    "json_line",
    "new_console",
    "not_evaluated",
    "note",
    "opening",
    "own_code",
    "preflight",
    "prepared_data",
    "presets",
    "probed",
    "quality",
    "recipe",
    "review_recorded",
    "reviewed",
    "serving",
    "settled",
    "started",
    "tokenizer_differs",
    "trained",
    "writing",
]
