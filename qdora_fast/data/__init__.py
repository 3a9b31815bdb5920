"""From files to checked rows, masks and tokens: `prepare`, in dataset.py, is the complete path.

    read/             sources, readers, tables, large_json, compression, ids: the rows of any file, each with its source
                      detection, formats, custom, messages: one shape of a conversation
    clean/            filters, languages: what is wrong with one row; rejects: the reasons
                      similarity, dedup, groups, split, selection, lengths: what is decided over all rows
                      quality, reference: scores of the training rows by a reference model
    tokenize/         templates, vocabulary, spans, masking, render: which tokens are learned
    row_processor.py  the work on one row; pipeline.py runs it on all cores
    store.py          rows and tokens on disk; cache.py finds them again
    report/           builder, report: the counts; preflight, pages: how they are shown; review: a person's marks

`choose_template` comes before `prepare`; `format_preflight` turns its report into the page shown before training.
Importing this package imports nothing heavy.
"""

from qdora_fast.data.dataset import prepare
from qdora_fast.data.report.preflight import format_preflight
from qdora_fast.data.tokenize.render import previews
from qdora_fast.data.tokenize.templates import choose_template

__all__ = ["choose_template", "format_preflight", "prepare", "previews"]
