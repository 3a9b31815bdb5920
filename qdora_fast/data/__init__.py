"""Rows and tokens, in two stages: `prepare` (files to conversations) and `render` (conversations to token ids).

Between them stands `choose_template`; `format_preflight` turns their reports into the page shown before training.
Importing this package imports nothing heavy.
"""

from qdora_fast.data.dataset import Prepared, PrepareReport, prepare
from qdora_fast.data.detection import Detection, detect
from qdora_fast.data.messages import Message, Row, prompt_of
from qdora_fast.data.preflight import format_preflight
from qdora_fast.data.render import Rendered, RenderReport, render
from qdora_fast.data.templates import TemplateChoice, choose_template

__all__ = [
    "Detection",
    "Message",
    "PrepareReport",
    "Prepared",
    "RenderReport",
    "Rendered",
    "Row",
    "TemplateChoice",
    "choose_template",
    "detect",
    "format_preflight",
    "prepare",
    "prompt_of",
    "render",
]
