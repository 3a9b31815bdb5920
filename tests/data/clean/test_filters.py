from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.config import FilterSettings
from qdora_fast.data.clean.filters import check
from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.messages import Message, Row

ALL = FilterSettings(refusals=True)
SENTENCE = "The quick brown fox jumps over the lazy dog near the old river bank."
LONG = f"{SENTENCE} It does so every day. Nobody knows why. The dog does not mind at all."


def talk(*messages: Message) -> Row:
    return {"messages": list(messages), "tools": None, "meta": {"source": "x:1", "row": 1, "hash": ""}}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def bot(content: str, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def tool(content: str = "21", **more: Any) -> Message:
    return {"role": "tool", "content": content, **more}


def call(identity: str | None = None) -> Message:
    named = {"id": identity} if identity else {}
    return bot("", tool_calls=[named | {"type": "function", "function": {"name": "f", "arguments": {}}}])


def verdict(row: Row, settings: FilterSettings = ALL, raw: dict[str, Any] | None = None) -> str:
    """The reason for which a row is dropped, "" for a row that passes."""
    try:
        check(row, raw or {}, settings)
    except RejectedRow as rejected:
        return rejected.reason
    return ""


def of_answer(answer: str, prompt: str = "Tell me.") -> str:
    return verdict(talk(user(prompt), bot(answer)))


GOOD = {
    "plain prose": LONG,
    "one word": "Paris",
    "answers that look like nothing": "N/A",
    "NA for Namibia": "NA",
    "no": "None",
    "dash": "-",
    "code": "```python\nfor i in range(3):\n    print(f'{i}')\n```",
    "two code blocks": "First:\n```\na\n```\nthen\n```\nb\n```",
    "fence inside a list": "1. Run ```make```\n2. Done",
    "bare code": 'x = {"a": [1, 2, 3]}\nfor key, value in x.items():\n    print(key,',
    "github action": "env:\n  TOKEN: ${{ secrets.TOKEN }}",
    "braces in inline code": "Write `{{name}}` where the name should go.",
    "braces in a code block": "Like this:\n```\nHello {{name}}\n```",
    "latex": r"The fraction is $\frac{{a}}{{b}}$ and $x^{{n}}$, so $\sqrt{{ab}}$.",
    "python format string": "In an f-string, {{literal}} prints {literal}.",
    "set notation": "{{a, b}, {c}} is a set of sets.",
    "table": "| a | b |\n|---|---|\n" + "| the same | the same |\n" * 60,
    "list": "- Apples\n- Pears\n- Bananas and the",
    "poem": "The woods are lovely, dark and deep,\nBut I have promises to keep,\nAnd miles to go before I sleep",
    "letter": f"Dear Sir,\n\n{LONG}\n\nWith the very best wishes to you and to all of your family,\nYours sincerely,",
    "hashtag": "Enjoy the company of a loyal friend and experience love like no other, every single day. #PuppyLove",
    "french": "« L’été dernier, nous avons mangé des gâteaux à la crème brûlée » – œuvre d’Éric, 5 €.",
    "portuguese capitals": "A AÇÃO NÃO É “IRMÔ; NÃO «MAÇû!",
    "german": "Die Größe über 5 °C ist „süß“, und the Wort an",
    "hindi": "भारत की राजधानी नई दिल्ली है। क्\u200dष और ज्ञ",
    "telugu": "తెలుగు ఒక ద్రావిడ భాష, ర\u200cవి",
    "chinese": "中国的首都是北京，这是一个非常大的城市。",
    "arabic": "\u202bمرحبا\u202c، كيف حالك؟",
    "russian": "Столица России — Москва, это «очень» большой город №1.",
    "emoji": "👩\u200d👩\u200d👧 🇮🇳 ❤\ufe0f ¯\\_(ツ)_/¯ ( ͡° ͜ʖ ͡°)",
    "mathematics": "5×² ≤ −∞, ½ ≠ ¼, α²β³, 80°–90°, ¬¬p, ‡†, x ∈ ℝ, 3×²",
    "frames": "┌──────┐\n│ x²│ │\n│»   │\n└──────┘",
    "blocks": "░▒▓█▄▀ 50 % ▓°",
    "byte order mark": "\ufeffHello",
    "soft hyphen and private use": "Donau\u00addampf \uf8ff",
    "white space": "a\tb\r\nc\fd\u00a0e\u2028f",
    "escape codes spelled out": r"Print \x1b[31m or \033[0m to change the colour.",
    "multiplication": "\n".join(f"{i} x {j} = {i * j}" for i in range(1, 12) for j in range(1, 12)),
    "capitals": "\n".join(f"The capital of country {i} is city {i}." for i in range(60)),
    "song": "\n".join(["La la la, we sing along tonight", "and dance until the dawn"] * 2 + [LONG] + ["Hey!"] * 5),
    "apology": "I'm sorry to hear that your dog is ill. Take it to a vet.",
    "can't in prose": "You can't divide by zero, because no number times zero gives one.",
    "about AI": "An AI language model predicts the next token; it cannot feel.",
    "comma list in a chat": "i love pizza, pasta, and",
    "no full stops": "there is no place that I would rather go with all of my friends and the dog to",
}


@pytest.mark.parametrize("answer", GOOD.values(), ids=GOOD)
def test_good_answers_pass(answer: str) -> None:
    assert of_answer(answer) == ""


BAD = [
    ("Hello! I am {{name}}, made by {{ author }}.", "placeholder_answer"),
    ("Call {{company phone number}} for help.", "placeholder_answer"),
    *((text, "placeholder_answer") for text in ("TODO", " tbd.", "...", "…", "???", "<nooutput>", "No output")),
    *((text, "placeholder_answer") for text in ("[insert answer here]", "<your response here>", "{{output}}")),
    ("Lorem ipsum dolor sit amet, consectetur adipiscing elit.", "placeholder_answer"),
    ("Here it is:\n```python\nprint('a", "truncated_answer"),
    (f"{SENTENCE} That is the reason why people think of the", "truncated_answer"),
    (f"{SENTENCE} It is also known for its long tail, its ears, its nose,", "truncated_answer"),
    (f"{LONG} This memory serves all of us as a reminder of", "truncated_answer"),
    (f"{LONG}\n{LONG}\n{LONG}\n3. If the fox is tired in the evening, its speed is", "truncated_answer"),
    (f"I don\u2019t. {SENTENCE} I donâ€™t.", "mojibake"),
    ("Le cafÃ© est ici.", "mojibake"),
    ("ÐŸÑ€Ð¸Ð²ÐµÑ‚ Ð¼Ð¸Ñ€", "mojibake"),
    ("à¤¨à¤®à¤¸à¥à¤¤à¥‡", "mojibake"),
    ("Nice ðŸ˜€", "mojibake"),
    ("DonвЂ™t", "mojibake"),  # read as Windows-1251
    ("Don‚Äôt", "mojibake"),  # read as Mac Roman
    ("Donâ€t", "mojibake"),  # its third byte is lost
    ("ï»¿Hello", "mojibake"),
    ("It was her fiancÃ© â\x80\x94 she said", "mojibake"),
    *(
        (f"a{character}b", "control_characters")
        for character in "\x00\x07\x0b\x1b\x7f\u0085\ufffd\ufdd0\ufffe\U0010ffff"
    ),
    ("I like to go there. " * 30, "repetition"),
    (f"{LONG} " + "and so on and so on " * 40, "repetition"),
    ("我喜欢去那里玩。" * 20, "repetition"),
    ("As an AI language model, I cannot have opinions.", "refusal"),
    ("I'm sorry, but I can't assist with that request.", "refusal"),
    ("I am sorry, but I don’t have access to your files.", "refusal"),
    ("I apologize, but I am unable to help with this.", "refusal"),
    ("I cannot fulfill this request.", "refusal"),
    ("That would be against my programming.", "refusal"),
]


@pytest.mark.parametrize(("answer", "reason"), BAD)
def test_bad_answers_are_dropped_for_their_reason(answer: str, reason: str) -> None:
    assert of_answer(answer) == reason


@pytest.mark.parametrize(
    "text", ["naïve café œuvre", "Ärger über süße Äpfel", "Привет, мир", "హలో ప్రపంచం", "नमस्ते", "你好世界", "“yes”"]
)
def test_text_read_in_the_wrong_encoding_is_found_and_the_right_text_is_not(text: str) -> None:
    assert of_answer(text) == ""
    assert of_answer(text.encode().decode("latin-1")) == "mojibake"


FORGIVEN = [
    ("Explain Jinja templates.", "Write Hello {{name}} and pass name=World."),
    ("Translate: Hello {{name}}", "Bonjour {{name}}"),
    ("Write an email template.", "Dear {{first_name}}, thank you."),
    ("Is the state of the ticket TODO or DONE?", "TODO"),
    ("Give me placeholder text.", "Lorem ipsum dolor sit amet."),
    ("How do I open a code block in Markdown?", "Type ``` and a newline."),
    ("Why do I see strange letters? Is it an encoding problem?", "donâ€™t was don’t once, and cafÃ© a place."),
    ("What is the Unicode replacement character?", "It is \ufffd."),
    ("Repeat 'I like to go there' 30 times.", "I like to go there. " * 30),
    ("Give me the lyrics.", "Never gonna give you up, never gonna let you down\n" * 20),
]


@pytest.mark.parametrize(("prompt", "answer"), FORGIVEN)
def test_what_the_conversation_is_about_is_no_fault(prompt: str, answer: str) -> None:
    assert of_answer(answer, prompt) == ""
    assert of_answer(answer) != ""


def test_each_filter_can_be_turned_off() -> None:
    off = FilterSettings(
        placeholders=False,
        truncated=False,
        role_order=False,
        mojibake=False,
        control_characters=False,
        max_repetition=1,
    )
    assert [verdict(talk(user("q"), bot(answer)), off) for answer, _ in BAD] == [""] * len(BAD)
    assert verdict(talk(bot("Hello"), user("q"), bot("a")), off) == ""


def test_refusals_pass_unless_they_are_to_go() -> None:
    assert verdict(talk(user("q"), bot("I cannot assist with that.")), FilterSettings()) == ""


def test_the_share_of_repetition_is_a_setting() -> None:
    row = talk(user("q"), bot("I like to go there. " * 20 + LONG * 2))
    assert verdict(row) == "repetition"
    assert verdict(row, FilterSettings(max_repetition=0.9)) == ""


def test_code_and_tables_are_not_counted_as_repetition() -> None:
    block = "```\n" + "print('the same line again and again')\n" * 40 + "```"
    assert of_answer(f"{LONG}\n{block}") == ""
    assert of_answer(f"{'I like to go there. ' * 30}\n| a | b |\n{LONG}") == "repetition"


@pytest.mark.parametrize(
    ("column", "value"),
    [("finish_reason", "length"), ("stop_reason", "max_tokens"), ("finishReason", "MAX_TOKENS"), ("truncated", True)],
)
def test_a_column_that_says_so_is_believed(column: str, value: object) -> None:
    row = talk(user("q"), bot("A whole sentence."))
    assert verdict(row, raw={column: value}) == "truncated_answer"
    assert (
        verdict(row, raw={column: "stop"})
        == verdict(row, raw={column: False})
        == verdict(row, raw={column: None})
        == ""
    )


def test_only_the_last_answer_can_be_cut() -> None:
    cut = f"{SENTENCE} That is the reason why people think of the"
    assert verdict(talk(user("q"), bot(cut), user("go on"), bot("fox."))) == ""
    assert verdict(talk(user("q"), bot("Fine."), user("q"), bot(cut))) == "truncated_answer"


def test_answers_that_are_not_trained_are_not_judged() -> None:
    row = talk(user("q"), bot("TODO", train=False), user("q"), bot("Fine."))
    assert verdict(row) == ""
    row["messages"][1]["train"] = True
    assert verdict(row) == "placeholder_answer"


def test_broken_characters_in_prompts_count_but_stand_ins_do_not() -> None:
    assert verdict(talk(user("a\x00b"), bot("Fine."))) == "control_characters"
    assert verdict(talk(user("cafÃ©"), bot("Fine."))) == "mojibake"
    assert verdict(talk(user("TODO"), bot("Fine."))) == ""


def test_plain_text_is_judged_by_its_characters_and_repetition() -> None:
    def text(content: str) -> Row:
        return talk() | {"text": content}  # type: ignore[return-value]

    assert verdict(text("a\x00b")) == "control_characters"
    assert verdict(text("Le cafÃ© est ici.")) == "mojibake"
    assert verdict(text("I like to go there. " * 30)) == "repetition"
    assert verdict(text(f"{SENTENCE} That is the reason why people think of the")) == ""  # a piece of a document


def test_the_assistant_does_not_speak_first() -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    assert verdict(talk(bot("Hello"), user("q"), bot("a"))) == "role_order"
    assert verdict(talk(system, bot("Hello"), user("q"), bot("a"))) == "role_order"
    assert verdict(talk(system, user("q"), bot("a"))) == ""


def test_tool_results_need_a_call() -> None:
    assert verdict(talk(user("q"), call(), tool(), tool(), bot("a"))) == ""
    assert verdict(talk(user("q"), bot('<tool_call>{"name": "f"}</tool_call>'), tool(), bot("a"))) == ""
    assert verdict(talk(user("q"), call("1"), tool(tool_call_id="1"), bot("a"))) == ""
    assert verdict(talk(user("q"), call(), tool(tool_call_id="1"), bot("a"))) == ""  # calls without identifiers
    assert verdict(talk(user("q"), tool(), bot("a"))) == "role_order"
    assert verdict(talk(user("q"), bot("Hello."), tool(), bot("a"))) == "role_order"
    assert verdict(talk(user("q"), call(), user("stop"), tool(), bot("a"))) == "role_order"
    assert verdict(talk(user("q"), call("1"), tool(tool_call_id="2"), bot("a"))) == "role_order"


def test_the_detail_names_the_message_and_quotes_little_of_it() -> None:
    with pytest.raises(RejectedRow, match=r"message 2: U\+001B in") as caught:
        check(talk(user("q"), bot(f"{SENTENCE}\x1b[31m{SENTENCE}")), {}, ALL)
    assert "\x1b" not in str(caught.value) and r"\x1b[31m" in str(caught.value)
    assert len(caught.value.detail) < 80


@given(st.text(), st.text(min_size=1), st.dictionaries(st.text(), st.none() | st.text() | st.lists(st.integers())))
def test_any_text_passes_or_is_rejected_and_stays_as_it_is(prompt: str, answer: str, raw: dict[str, Any]) -> None:
    row = talk(user(prompt), bot(answer))
    verdict(row, raw=raw)
    assert row == talk(user(prompt), bot(answer))


@given(st.text(alphabet=st.characters(categories=["L", "M", "Nd", "Zs", "Sm"], max_codepoint=0xFFF), max_size=60))
def test_words_of_any_script_are_no_broken_characters(text: str) -> None:
    assert verdict(talk(user(text), bot("Fine."))) != "control_characters"
