"""From files to rows, masks and tokens one can stand behind: `prepare`.

`choose_template` comes before it, `format_preflight` turns its report into the page shown before training.
Importing this package imports nothing heavy.
"""

from qdora_fast.data.dataset import Prepared, prepare
from qdora_fast.data.detection import Detection, detect
from qdora_fast.data.messages import Message, Row, prompt_of
from qdora_fast.data.preflight import format_preflight
from qdora_fast.data.render import Rendered, Rendering, RenderReport, previews, render
from qdora_fast.data.report import DataReport
from qdora_fast.data.templates import TemplateChoice, choose_template

__all__ = [
    "DataReport",
    "Detection",
    "Message",
    "Prepared",
    "RenderReport",
    "Rendered",
    "Rendering",
    "Row",
    "TemplateChoice",
    "choose_template",
    "detect",
    "format_preflight",
    "prepare",
    "previews",
    "prompt_of",
    "render",
]
