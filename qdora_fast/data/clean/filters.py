"""Rows dropped for what they say: wrong order of roles, broken characters, stand-ins, cut or looping answers, refusals.

`check` looks at one row and names its first fault; it never changes a row. A good row that is dropped costs more
than a bad one that is kept, for nobody sees it go. So every rule asks for evidence beyond the first sign, and gives
way when the conversation is about the very thing: {{name}} in a lesson on templates is no unfilled field.

What stays unseen: answers cut after a word that may end a sentence, or inside a number; answers cut in a language
other than English, unless a column of the file says so; stand-ins in the middle of an answer in [square brackets],
which letters to be filled in by the reader have as well. Lengths in tokens are not judged here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import regex

from qdora_fast.config import FilterSettings
from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.clean.similarity import units
from qdora_fast.data.read.messages import Message, Row

QUOTED = 40
"""Characters of a text that a rejection quotes."""
FEWEST_WORDS_CUT, FEWEST_WORDS_LINE, FEWEST_SENTENCES = 20, 8, 4
FEWEST_WORDS_REPEATED, GRAM = 50, 5

NamedText = tuple[str, str]  # where, such as "message 2", and the text there


def check(row: Row, raw: Mapping[str, Any], settings: FilterSettings) -> None:
    """Pass a row, or name its first fault. `raw` is the row as it lay in the file, for `finish_reason` and the like.

    Raises:
        RejectedRow: role_order, control_characters, mojibake, placeholder_answer, truncated_answer, repetition
            or refusal; the detail names the message and quotes what was match.
    """
    messages = row["messages"]
    if settings.role_order:
        _check_roles(messages)
    texts = list(_texts(row))
    if settings.mojibake:
        _check_encoding(texts)
    if settings.control_characters:
        _check_characters(texts)
    answers = [
        (f"message {number}", message["content"])
        for number, message in enumerate(messages, 1)
        if message["role"] == "assistant" and message.get("train", True)
    ]
    if settings.placeholders:
        _check_stand_ins(answers, messages)
    if settings.truncated and messages:
        _check_end(messages, raw)
    if settings.max_repetition < 1:
        _check_loops(answers or texts, messages, settings.max_repetition)
    if settings.refusals:
        _check_refusals(answers)


# Order of roles

_CALL_IN_TEXT = re.compile(r"[<{(\[]|\baction\b", re.IGNORECASE)  # a call that is spelled out in the answer


def _check_roles(messages: list[Message]) -> None:
    turns = [message["role"] for message in messages if message["role"] != "system"]
    if turns and turns[0] == "assistant":
        raise RejectedRow("role_order", "the assistant speaks first")
    caller: Message | None = None
    known: set[str] = set()
    for number, message in enumerate(messages, 1):
        if message["role"] != "tool":
            caller = message if message["role"] == "assistant" else None
            known |= {call["id"] for call in message.get("tool_calls", ()) if "id" in call}
            continue
        if caller is None or not ("tool_calls" in caller or _CALL_IN_TEXT.search(caller["content"])):
            raise RejectedRow("role_order", f"message {number} is a tool result, but no tool was called")
        answered = message.get("tool_call_id")
        if answered and known and answered not in known:
            raise RejectedRow("role_order", f"message {number} answers the unknown call {_quote(answered)}")


# Characters that are no text, and text in the wrong encoding

_ASCII_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")  # not tab, newline, form feed, carriage return
# U+0085, too: as a rule the ellipsis of Windows-1252 in a wrong decoding, and the model would learn to print it.
_CONTROL = regex.compile(
    r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffd-\uffff"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0x110000, 0x10000))
    + "]"
)
_ABOUT_ENCODING = re.compile(
    r"unicode|utf-?8|encod|decod|mojibake|latin-?1|\b8859|\b1252\b|charset|garbled|FFFD|replacement character", re.I
)
_SUSPECT = re.compile("[\x80-\u04ff\u2013-\u2265\u2500-\u25ff\uf8ff\ufb01\ufb02\ufffd]{2}|[\x80-\x9fÂÃŒœ]")
_STRONG = re.compile(
    "â[€ˆ‰†]|вЂ|‚Ä|√[±≠©®∂]|ðŸ|ï»¿|[ÂÃ][\xa0-\xba\xbc-\xbf]|à[¤-¾][^ ]à[¤-¾]"
)  # a single one is proof enough
_BY_CHANCE = re.compile("Ã[”’»]|×[²³]")  # the end of a quoted Portuguese word, and arithmetic


def _texts(row: Row) -> Iterator[NamedText]:
    """Every text of a row, named: `message 2`."""
    if "text" in row:
        yield "text", row["text"]
    for number, message in enumerate(row["messages"], 1):
        yield f"message {number}", message["content"]
        if message.get("reasoning_content"):
            yield f"message {number}, reasoning", message["reasoning_content"]


def _check_characters(texts: list[NamedText]) -> None:
    for name, text in texts:
        match = (_ASCII_CONTROL if text.isascii() else _CONTROL).search(text)
        if match and not (match[0] == "\ufffd" and _is_about(_ABOUT_ENCODING, texts)):
            raise RejectedRow("control_characters", f"{name}: U+{ord(match[0]):04X} in {_around(text, match.start())}")


def _check_encoding(texts: list[NamedText]) -> None:
    for name, text in texts:
        if text.isascii() or not _SUSPECT.search(text):
            continue
        proof = _mojibake(text)
        if proof and not _is_about(_ABOUT_ENCODING, texts):
            raise RejectedRow("mojibake", f"{name}: {_around(text, text.index(proof))}")


def _mojibake(text: str) -> str | None:
    """The first sequence that betrays a wrong decoding.

    ftfy's improbable sequences also occur in good text (a table's frame beside x²). So they count in lines only that
    read back as proper UTF-8, and one alone only if it hardly means anything else.
    """
    from ftfy import fix_encoding
    from ftfy.badness import BADNESS_RE

    if not BADNESS_RE.search(text):
        return None
    garbled: list[str] = []
    for line in _BY_CHANCE.sub("\n", text).split("\n"):
        suspects = BADNESS_RE.findall(line)
        if suspects and (fix_encoding(line) != line or "â€" in line):  # â€: a third byte may have been lost
            garbled += suspects
    return garbled[0] if len(garbled) > 1 or (garbled and _STRONG.search(text)) else None


# Stand-ins for an answer

_UNFILLED = re.compile(r"(?<![\w}{\\^$@=])\{\{\s*[A-Za-z_][\w.-]*(?: [\w.-]+){0,3}\s*\}\}(?!\})")
_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`", re.DOTALL)
_ABOUT_TEMPLATES = re.compile(
    r"\{%|</\w|jinja|handlebars|mustache|curly|brac(?:e|ket)|\bvue|angular|svelte|liquid|django|helm\b|ansible|"
    r"latex|\btex\b|templat|placeholder|wiki|fill[- ]in|variable|merge (?:field|tag)|mail merge|interpolat|"
    r"\breplace\b|f-string|format string|postman|zapier|cookiecutter|\bhugo\b|github action|\bdbt\b|airflow|prompt",
    re.IGNORECASE,
)
_WHOLE = re.compile(
    r"\s*(?:(?:todo|tbd|tba|fixme|to be (?:done|determined|added|completed)|(?:answer|output|response) here)[.!:]*|"
    r"\.{2,}|…+|\?{3,}|<?no\s?output>?|[\[<{]{1,3}\s*(?:insert\b[^\]>}\n]{0,60}|"
    r"(?:enter|add|write|type|put|paste|your|provide)\b[^\]>}\n]{0,40}\b(?:here|answer|response|output|text)\s*|"
    r"(?:answer|response|output|completion|todo|tbd|placeholder)(?: here)?\s*)[\]>}]{1,3}\.?)\s*",
    re.IGNORECASE,
)
_FILLER = re.compile(r"\s*lorem ipsum\b", re.IGNORECASE)
_ABOUT_FILLER = re.compile(r"lorem|placeholder|dummy|filler|latin", re.IGNORECASE)


def _check_stand_ins(answers: list[NamedText], messages: list[Message]) -> None:
    asked = _asked(messages)
    for name, answer in answers:
        filler = _FILLER.match(answer) and not _is_about(_ABOUT_FILLER, asked)
        if filler or (len(answer) < 120 and _WHOLE.fullmatch(answer) and not _is_choice(answer, asked)):
            raise RejectedRow("placeholder_answer", f"{name} is {_quote(answer)}")
        match = _UNFILLED.search(_CODE.sub(" ", answer)) if "{{" in answer else None
        if match and not (any("{{" in text for _, text in asked) or _is_about(_ABOUT_TEMPLATES, [*asked, *answers])):
            raise RejectedRow("placeholder_answer", f"{name} holds {_quote(match[0])}")


def _is_choice(answer: str, asked: list[NamedText]) -> bool:
    """Whether the prompt itself has this word: "is the entry DONE or TODO?"."""
    word = answer.strip(" \n.!:").lower()
    return bool(word) and any(word in text.lower() for _, text in asked)


# Answers that stop in the middle

_STOP_COLUMNS = ("finish_reason", "stop_reason", "finishReason", "stopReason", "done_reason", "truncated")
_STOPPED = ("length", "max_tokens", "max_length", "model_length", "max_output_tokens", "token_limit", "true", "yes")
_ABOUT_FENCES = re.compile(r"```|markdown|back-?tick|fence|code block", re.IGNORECASE)
_CODE_LINE = re.compile(r"[=;{}<>|\\`]|^(?: {4}|\t)")
_LIST_LINE = re.compile(r"\s*(?:[-*•+–#>]|\(?\w{1,3}[.):])\s")
_ENGLISH = re.compile(r"\bthe\b")
_OPEN_END = re.compile(
    r"(?:\b(?:the|an|and|or|because|than|my|your|their|our|if|whose|every|between|during|including|"
    r"(?:as|such|into|through|using|with|have|has|had|like) a)|[(\[]|"
    r"\w(?<!regards)(?<!sincerely)(?<!yours)(?<!truly)(?<!wishes)(?<!love)(?<!respectfully)(?<!soon),)$"
)
_OPEN_AMONG_SENTENCES = re.compile(  # "that is what I am used to" is no cut in a chat, where nobody sets full stops
    r"\b(?:[Oo]f|[Tt]o|[Ww]ith|[Ff]or|[Ff]rom|[Bb]y|into|[Ii]n|[Oo]n|[Aa]t|is|are|was|were|be|been|has|had|could|would|"
    r"should|may|might|must|which|who|[Ww]hile|[Aa]s|its|a|[Tt]he|[Aa]n|[Aa]nd|[Ii]f)$"
)
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+(?=[\"'(]?[A-Z])")
_STOPS = ".!?:)\"'”’"


def _check_end(messages: list[Message], raw: Mapping[str, Any]) -> None:
    """Only the last answer: earlier ones were followed by another turn."""
    for name in _STOP_COLUMNS:
        if name in raw and str(raw[name]).lower() in _STOPPED:
            raise RejectedRow("truncated_answer", f"column {name} is {raw[name]}")
    last = messages[-1]
    answer = last["content"].rstrip()
    if last["role"] != "assistant" or not last.get("train", True) or last.get("tool_calls"):
        return
    if answer.count("```") % 2 and not _is_about(_ABOUT_FENCES, _asked(messages)):
        raise RejectedRow("truncated_answer", f"a code block is still open: {_quote(answer, end=True)}")
    line = answer[answer.rfind("\n") + 1 :]
    tail = line[-30:]  # longer than any of the endings
    plain = _OPEN_END.search(tail) and not _LIST_LINE.match(line)
    if not plain and not (_OPEN_AMONG_SENTENCES.search(tail) and _sets_stops(answer, line)):
        return
    if _CODE_LINE.search(line) or len(line.split()) < FEWEST_WORDS_LINE or len(answer.split()) < FEWEST_WORDS_CUT:
        return
    if _ENGLISH.search(answer):
        raise RejectedRow("truncated_answer", f"ends with {_quote(answer, end=True)}")


def _sets_stops(answer: str, line: str) -> bool:
    """Whether an answer ends its sentences, up to the last `line`: at least 4 of them, in 4 of 5 lines."""
    earlier = [each.rstrip() for each in answer.split("\n")[:-1] if len(each.split()) >= FEWEST_WORDS_LINE]
    ended = sum(each[-1] in _STOPS for each in earlier)
    sentences = sum(len(_SENTENCE_END.findall(each)) for each in [*earlier, line]) + ended
    return sentences >= FEWEST_SENTENCES and ended * 5 >= len(earlier) * 4


# Answers that go round in circles

_BLOCK = re.compile(r"```.*?(?:```|\Z)|^[^\n|]*\|[^\n|]*\|[^\n]*$", re.DOTALL | re.MULTILINE)  # code, table rows
_ABOUT_LOOPS = re.compile(
    r"\brepeat|\b(?:say|write|type)\b[^.?!]{0,200} times\b|lyrics|\bsong|\bpoem|chant", re.IGNORECASE
)


def _check_loops(answers: list[NamedText], messages: list[Message], largest: float) -> None:
    for name, answer in answers:
        text = _BLOCK.sub(" ", answer) if "```" in answer or "|" in answer else answer
        words = text.split() if text.isascii() else units(text)
        runs = len(words) - GRAM + 1
        # A run that repeats begins with a word that repeats: many distinct words settle it without building runs.
        if len(words) < FEWEST_WORDS_REPEATED or len(words) - len(set(words)) <= largest * runs:
            continue
        grams = list(zip(*(words[start:] for start in range(GRAM)), strict=False))
        share = 1 - len(set(grams)) / runs
        if share > largest and not _is_about(_ABOUT_LOOPS, _asked(messages)):
            raise RejectedRow("repetition", f"{name}: {share:.0%} of its 5-grams repeat an earlier one")


# Refusals

_SUBJECT = r"(?:an?|your) (?:ai|artificial intelligence|(?:large )?language model|virtual assistant|chatbot)\b"
_CANNOT = r"(?:cannot|can(?:'|no)t|can not|am unable|am not able|won't|will not|must decline|do not|don't|am not)"
_HELP = r"(?:assist|help|fulfil|comply|provide|answer|do that|support|engage|generate|create|write|have|feel)"
_REFUSAL = re.compile(
    rf"\bas {_SUBJECT}[^.!?]{{0,80}}\b{_CANNOT}\b|"
    rf"\b(?:i'm|i am|i'm very|we are|we're) (?:sorry|afraid)\b[^.!?]{{0,40}}\b{_CANNOT} (?:be able )?(?:to )?{_HELP}|"
    rf"\bi apologi[sz]e\b[^.!?]{{0,60}}\b{_CANNOT} (?:be able )?(?:to )?{_HELP}|"
    rf"^\W*(?:unfortunately,? )?i {_CANNOT} (?:to )?(?:assist|help|fulfil|comply|engage|participate|support|do that)|"
    r"\b(?:against|violates?) (?:my|our|the) (?:\w+ )?(?:programming|guidelines|polic(?:y|ies)|terms)|"
    rf"\bi(?:'m| am) (?:just |only )?{_SUBJECT}[^.!?]{{0,60}}\b{_CANNOT}\b",
    re.IGNORECASE,
)


def _check_refusals(answers: list[NamedText]) -> None:
    for name, answer in answers:  # a refusal comes first
        match = _REFUSAL.search(answer[:200].replace("\u2019", "'"))
        if match:
            raise RejectedRow("refusal", f"{name}: {_quote(match[0])}")


# Shared by the rules


def _asked(messages: list[Message]) -> list[NamedText]:
    return [("", message["content"]) for message in messages if message["role"] in ("system", "user")]


def _is_about(topic: re.Pattern[str], texts: list[NamedText]) -> bool:
    return any(topic.search(text) for _, text in texts)


def _quote(text: str, *, end: bool = False) -> str:
    if len(text) > QUOTED:
        text = "..." + text[3 - QUOTED :] if end else text[: QUOTED - 3] + "..."
    return repr(text)  # control characters escaped


def _around(text: str, position: int) -> str:
    return _quote(text[max(0, position - QUOTED // 2) :][:QUOTED])
