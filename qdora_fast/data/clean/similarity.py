"""What makes two rows the same, or nearly: a text key, its hash, its shingles, and their MinHash signature.

The key of a row is all that is said in it, folded: NFC, case, white space, joiners and digits of any script. Folding
is for comparing only and never reaches training. Compatibility forms stay apart (NFKC would make x² and x2 equal),
and so do vowel signs and numbers: a question about 12 apples is not the one about 13.

Near-duplicates share most of their shingles: runs of five words, or of five characters in scripts without spaces.
Two things must not make rows look alike. Labels of roles are not shingled at all. The setting of a conversation, its
system message and tools, is often a page that all rows share: it counts as at most a quarter of what is said, by a
sample (the smallest hashes) that is the same for the same setting. So rows with one system message and different
questions stay apart, and so do those with one question about different documents in the system message.

Signatures are datasketch's MinHash, used to find candidates only; `jaccard` decides.
"""

from __future__ import annotations

import functools
import heapq
import json
import math
import unicodedata
from collections.abc import Iterable
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import regex
import xxhash

from qdora_fast.data.read.messages import Message, Row

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE = 5
"""Words, or characters, in a shingle."""
SETTING_SHARE = 0.25
"""Shingles of system message and tools that count, as a share of those of the conversation."""
PERMUTATIONS = 256
ROWS = 8
"""Values in a band: 32 bands make candidates of 99.7 % of the pairs with similarity 0.8, and of 12 % at 0.5."""

_PART = "\x1e"  # opens each part of a key; `str.split` counts it as white space, so that no content holds one
_SETTING = ("system: ", "tools: ")
_WORD = regex.compile(r"\w+")  # of `regex`, not `re`: that cuts Indic words at their vowel signs
_FOREIGN_DIGIT = regex.compile(r"[\p{Nd}--0-9]", regex.V1)
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}&&\p{L}]", regex.V1)
_LETTER = regex.compile(r"\p{L}")
_UNSPACED_FROM = "\u0e00"  # the first character of the first of these scripts
_UNSPACED_SHARE = 0.3


def canonical_text(row: Row) -> str:
    """Everything said in a row as one folded text; equal for rows that are the same.

    Parts are "role: content", and "tools", "thinks" and "calls" for tool schemas, reasoning and tool calls. Each is
    opened by U+001E, which tells `shingles` where they begin. Identifiers of tool calls, training marks and chat
    templates play no part. The text of a plain-text row is its only part.
    """
    if "text" in row:
        return _folded(row["text"])
    parts = [("tools", _as_json(row["tools"]))] if row["tools"] else []
    for message in row["messages"]:
        parts += _parts(message)
    return "".join(f"{_PART}{label}: {_folded(content)}" for label, content in parts)


def exact_key(text: str) -> bytes:
    """The first 16 bytes of the SHA-256 of a canonical text."""
    return sha256(text.encode()).digest()[:16]


def shingles(text: str) -> frozenset[int]:
    """64-bit hashes of the shingles of a canonical text; empty for a text too short to compare but as a whole."""
    plain, *parts = text.split(_PART)
    turns, setting = [plain], list[str]()
    for part in parts:
        (setting if part.startswith(_SETTING) else turns).append(part.partition(": ")[2])
    hashes = _hashes(" ".join(turns))
    counted = heapq.nsmallest(math.ceil(SETTING_SHARE * len(hashes)), _hashes(" ".join(setting)))
    return frozenset(hashes.union(counted))


def units(text: str) -> list[str]:
    """The words of a text, or its characters when over 30 % of its letters are of scripts without spaces.

    Punctuation belongs to neither.
    """
    words: list[str] = _WORD.findall(text)
    if text.isascii() or max(text) < _UNSPACED_FROM:
        return words
    unspaced = len(_UNSPACED.findall(text))
    if unspaced and unspaced > _UNSPACED_SHARE * len(_LETTER.findall(text)):
        return list("".join(words))
    return words


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Shared shingles as a share of all: 0 to 1; 0 when either set is empty."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if shared else 0.0


def signature(shingles: frozenset[int]) -> np.ndarray:
    """MinHash of a set, uint32 [256]; the share of equal values of two estimates their Jaccard similarity.

    The same on every machine. All empty sets have one signature (the largest value throughout): leave them out.
    """
    minhash = _empty_minhash().copy()
    minhash.update_batch(shingles)
    return np.asarray(minhash.hashvalues)


def signatures(sets: Iterable[frozenset[int]]) -> np.ndarray:
    """`signature` of each set, uint32 [n, 256]."""
    return np.array([signature(each) for each in sets], dtype=np.uint32).reshape(-1, PERMUTATIONS)


def _parts(message: Message) -> list[tuple[str, str]]:
    parts = [("thinks", message["reasoning_content"])] if message.get("reasoning_content") else []
    if message["content"]:
        parts.append((message["role"], message["content"]))
    if message.get("tool_calls"):
        parts.append(("calls", _as_json([call["function"] for call in message["tool_calls"]])))
    return parts


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _folded(text: str) -> str:
    if not text.isascii():
        text = text.replace("\u200c", "").replace("\u200d", "")  # before NFC, which they keep from composing
        text = unicodedata.normalize("NFC", text).casefold()
        text = unicodedata.normalize("NFC", text)  # folding can take letters apart
        text = _FOREIGN_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0], digit[0])), text)
    return " ".join(text.casefold().split())


def _hashes(text: str) -> set[int]:
    pieces = units(text)
    runs = zip(*(islice(pieces, start, None) for start in range(SHINGLE)), strict=False)
    return set(map(xxhash.xxh3_64_intdigest, map(str.encode, map(" ".join, runs))))


@functools.cache
def _empty_minhash() -> MinHash:
    """The permutations, drawn once. datasketch wants 32 bits: the lower half of a shingle's hash."""
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=_lower_half)


def _lower_half(value: int) -> int:
    return value & 0xFFFFFFFF
