"""How much a file may ask for: every limit on what is read from disk, with its unit and its reason.

A file of a few kilobytes can ask for gigabytes of memory or for hours, by accident or because somebody made it so. Each
reader stops at the limit that stands here, with an error that names the file. The limits are far above what training
data, runs and models contain.
"""

from __future__ import annotations

JSON_FILE_BYTES = 64 * 2**20
"""Bytes of a JSON file that is read at once. An index of 100,000 tensors, as the largest models have, is about 10 MB
long; a parsed file takes up to 20 times its bytes of memory."""

LINE_BYTES = 64 * 2**20
"""Bytes of one line of JSONL or CSV. A line is held in memory; a book of 1,000 pages has about 3 MB."""

BLANK_LINES = 1_000_000
"""Blank lines in a row of JSONL or text. They pack to nothing, and each takes as long to read as a row."""

VALUE_CHARACTERS = 64 * 2**20
"""Characters in one value of a CSV table. More of them means a quote that is never closed."""

JSON_DEPTH = 100
"""Levels of lists and objects within one another. Python's parser ends near 1,000, and each later stage has its own
limit; files that we and Transformers write have fewer than 20."""

INTEGER_DIGITS = 300
"""Digits of a whole number. A longer one does not become a float (the largest has 309 digits); ids and hashes that are
written as numbers have at most 40."""

TABLE_COLUMNS = 10_000
"""Columns of a table: CSV, Parquet or Arrow. Each row is read into a dictionary of that many entries."""

BATCH_BYTES = 64 * 2**20
"""Bytes of rows that are read from a table, or handed to a worker, at a time. A batch has one row at least."""

UNPACKED_PER_PACKED_BYTE = 1_000
"""Unpacked bytes per packed byte of a .gz or .zst file, once `UNPACKED_BYTES` have been read. Text
becomes 3 to 50 times smaller; a file that unpacks to a thousand times its size holds one thing over and over again."""

TABLE_UNPACKED_PER_PACKED_BYTE = 20_000
"""The same of a Parquet or Arrow file, which holds a text once that stands in every row, such as 100 kB of tools."""

UNPACKED_OF_LONG_LINE = 100
"""The same of a .gz or .zst with a line longer than `LINE_BYTES`, whose rest is unpacked for nothing."""

UNPACKED_BYTES = 64 * 2**20
"""Unpacked bytes from which on the ratio is looked at: small files may be of any kind."""

MODEL_LAYERS = 10_000
"""Layers that a model's config.json may name. A plan counts each of them."""

MODEL_COUNT = 2**31
"""Any other count in config.json, such as the size of the vocabulary: what a 32-bit index reaches."""

SETTING_COUNT = 2**32
"""Any whole number in a config: rows, steps, tokens, seeds."""

SETTING_NUMBER = 1e12
"""Any other number in a config."""

PATTERN_SECONDS = 2
"""Seconds of a regular expression that somebody else wrote, on one text. A usual one takes a millionth of it."""

PATTERN_CHARACTERS = 100_000
"""Characters of a regular expression in an adapter's config. One that names every layer of a
large model has about 20,000."""

PATTERN_REPETITIONS = 5
"""Repetitions that follow each other in such an expression. On a name of 100 characters that is 10 million steps at
worst."""

PATTERN_CHOICES = 30
"""Ways in which such an expression can take the same text for one of its alternatives, one of which may be nothing, and
so many times more for each repetition fewer. Names of layers in alternatives are one way: they differ."""

BODY_BYTES = 8 * 2**20
"""Bytes of a request to the server. That is a conversation of two million tokens."""

BODY_SECONDS = 10
"""Seconds in which a request must have arrived."""

REQUESTS_AT_ONCE = 64
"""Requests that wait in the server at a time. They are answered one after the other."""

TEMPLATE_SECONDS = 3
"""Seconds of processor time in which a chat template must have rendered a conversation. Usual ones take
milliseconds."""

TEMPLATE_MEMORY_BYTES = 512 * 2**20
"""Bytes of memory that a chat template may need, beside those of the process that it runs in."""

TEMPLATE_CHARACTERS = 256 * 2**10
"""Characters of a chat template. The longest that models bring have about 20,000."""

TEMPLATE_OUTPUT_CHARACTERS = 2**20
"""Characters that a chat template may print on its own: prompts for tools, instructions, examples."""

TEMPLATE_OUTPUT_TIMES = 16
"""Characters that it may print beyond that, per character of the conversation with its tools."""

TEMPLATE_INTEGER_BITS = 4096
"""Bits of a number that a chat template computes by `*` or `**`. Templates count messages."""

TEMPLATE_FAILURES = 3
"""Conversations for which a chat template may be stopped at these limits, before the command ends."""

HEADER_BYTES = 16 * 2**20
"""Bytes of the header of a safetensors file. One of 10,000 tensors, as unfused experts have in a shard,
takes about 1 MB."""

HEADER_TENSORS = 200_000
"""Tensors in one safetensors file."""

REMOTE_BYTES = 64 * 2**30
"""Bytes that are fetched for one URL of rows. Text of 64 GiB has about 16 billion tokens."""

REMOTE_FILES = 10_000
"""Files that are fetched for one URL of rows."""
