"""From files to rows, masks and tokens one can stand behind: `prepare`, in dataset.py, is the whole path.

    files        sources, readers, tables, large_json, compression, ids: whatever lies there, row by row, with its place
    shapes       detection, formats, custom → messages: one shape of a conversation, or a reason in rejects
    one row      judge: filters, similarity (the keys of a row), languages; run on all cores by pipeline
    tokens       templates, vocabulary → spans, masking → render: which tokens are learned
    all rows     selection: dedup and groups, then split
    opinion      quality, with reference: what a model thinks of the training rows
    account      accounts → report, lengths; told by preflight, drawn by pages; review: what a person thinks
    disk         store, cache

`choose_template` comes before `prepare`, `format_preflight` turns its report into the page shown before training.
Importing this package imports nothing heavy.
"""

from qdora_fast.data.dataset import Prepared, prepare
from qdora_fast.data.read.detection import Detection, detect
from qdora_fast.data.read.messages import Message, Row, prompt_of
from qdora_fast.data.report.preflight import format_preflight
from qdora_fast.data.report.report import DataReport
from qdora_fast.data.tokenize.render import Rendering, previews
from qdora_fast.data.tokenize.templates import TemplateChoice, choose_template

__all__ = [
    "DataReport",
    "Detection",
    "Message",
    "Prepared",
    "Rendering",
    "Row",
    "TemplateChoice",
    "choose_template",
    "detect",
    "format_preflight",
    "prepare",
    "previews",
    "prompt_of",
]
