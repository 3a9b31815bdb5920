"""A file of rows goes in and comes out with the answers that `chat` gives, whatever breaks it off on the way."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from heard import heard
from served import served

from qdora_fast.inference import ChatModel, SamplingParams, answer
from qdora_fast.inference.many import ManyAnswers
from qdora_fast.recipes.chat import load
from qdora_fast.recipes.predict.opened import find_source, open_model
from qdora_fast.recipes.predict.predict import predict
from qdora_fast.recipes.predict.progress import begun
from qdora_fast.system.errors import ConfigError, DataError, QdoraError, RunLocked
from qdora_fast.system.run_folder import RunFolder

MAIN = "from qdora_fast.cli.main import main; main()"
MODULE = "qdora_fast.recipes.predict.predict"


@pytest.fixture(scope="module")
def tuned(demo_run: RunFolder) -> ChatModel:
    return load(demo_run.path)


@pytest.fixture(scope="module")
def questions(demo_run: RunFolder) -> list[str]:
    return [row["messages"][0]["content"] for row in demo_run.read_rows("data/held_out.jsonl")[:20]]


@pytest.fixture(scope="module")
def server(tuned: ChatModel) -> Iterator[str]:
    with served(tuned) as url:
        yield url


def _lines(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_those_of_chat_row_by_row(tuned: ChatModel, questions: list[str], tmp_path: Path) -> None:
    rows = [{"id": number, "instruction": text, "output": "no", "topic": "x"} for number, text in enumerate(questions)]
    data, out = _lines(tmp_path / "q.jsonl", rows), tmp_path / "a.jsonl"
    with heard() as told:
        predict(tuned, data, out=out, max_new_tokens=24, batch_size=4)
    for row, made in zip(rows, _read(out), strict=True):
        said = answer(tuned, [{"role": "user", "content": row["instruction"]}], SamplingParams(24))
        assert made == row | {"answer": said.text, "stopped_by": "stop token", "tokens": said.tokens}
        assert list(made) == [*row, "answer", "stopped_by", "tokens"]
    assert "20 rows (`alpaca`: columns instruction and output); 20 with an answer" in told.getvalue()
    assert not out.with_name("a.jsonl.unfinished").exists()
    with pytest.raises(ConfigError, match="already exists; name another file, or --overwrite"):
        predict(tuned, data, out=out)
    predict(tuned, [{"question": questions[0]}], out=out, overwrite=True)
    assert len(_read(out)) == 1


def test_an_answer_may_be_cut_and_a_base_is_asked_without_training(tuned: ChatModel, questions: list[str]) -> None:
    cut = predict(tuned, [{"question": questions[0]}], max_new_tokens=2)
    assert (cut[0]["stopped_by"], cut[0]["tokens"]) == ("length", 2)
    base = find_source("demo", Path("demo"))
    assert base.trained is None and "not trained here" in base.about
    for wrong in ("nothing-of-this-name", "runs/nothing", "nowhere/at/all.jsonl"):
        with pytest.raises(ConfigError, match=r"hub|no run|not a run"):
            predict(wrong, [{"question": "x"}])
    with pytest.raises(ConfigError, match="MODEL must be its address"):
        predict(tuned, [{"question": "x"}], server_model="x")


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_what_was_broken_off_goes_on_and_gives_the_same_bytes(
    tuned: ChatModel, questions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    data = _lines(tmp_path / "q.jsonl", [{"question": text} for text in (*questions, questions[0])])
    how: dict[str, Any] = {"max_new_tokens": 8, "batch_size": 1, "temperature": temperature}
    seed = {"seed": 5} if temperature else {}
    whole = tmp_path / "whole.jsonl"
    predict(tuned, data, out=whole, **how, **seed)
    answers, calls = ManyAnswers.answers, []

    def broken(self: ManyAnswers, *args: Any) -> Any:
        calls.append(args[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answers(self, *args)

    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ManyAnswers, "answers", broken)
        predict(tuned, data, out=out, **how, **seed)
    written = out.with_name("out.jsonl.unfinished") / "answers.jsonl"
    assert calls == [0, 8, 16] and len(written.read_text().splitlines()) == 16 and not out.exists()
    with written.open("a") as file:  # as a kill in the middle of a write leaves it
        file.write('{"row": 16, "source": "x", "text": "a", "stopped_by": null, "tokens": 1, "reasoning": "", "probl')
    with monkeypatch.context() as patch:
        patch.setattr(
            ManyAnswers, "answers", lambda self, q, first, on: calls.append(first) or answers(self, q, first, on)
        )
        with heard() as told:
            predict(tuned, data, out=out, **how, **seed)
    assert calls[3:] == [16] and "16 of 21 rows were answered before" in told.getvalue()
    assert out.read_bytes() == whole.read_bytes()
    if temperature:
        first, *_, again = _read(out)
        assert first["question"] == again["question"] and first["answer"] != again["answer"]


def test_draws_without_a_seed_go_on_with_the_seed_of_their_beginning(
    tuned: ChatModel, questions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = [{"question": text} for text in questions], tmp_path / "a.jsonl"
    how: dict[str, Any] = {"out": out, "temperature": 1.5, "max_new_tokens": 6, "batch_size": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"{MODULE}.write", _interrupt)
        predict(tuned, rows, **how)
    folder = tmp_path / "a.jsonl.unfinished"
    before = [line["text"] for line in _read(folder / "answers.jsonl")]
    lines = (folder / "answers.jsonl").read_text().splitlines(keepends=True)
    (folder / "answers.jsonl").write_text("".join(lines[:8]))
    predict(tuned, rows, **how)
    assert [row["answer"] for row in _read(out)] == before


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_file_that_was_begun_otherwise_is_refused_with_what_differs(
    tuned: ChatModel, questions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = [{"question": text} for text in questions[:3]], tmp_path / "a.csv"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"{MODULE}.write", _interrupt)
        predict(tuned, rows, out=out, max_new_tokens=8)
    with pytest.raises(ConfigError, match="other settings .max_new_tokens 8 then, 9 now"):
        predict(tuned, rows, out=out, max_new_tokens=9)
    with pytest.raises(ConfigError, match="other rows"):
        predict(tuned, rows[:2], out=out, max_new_tokens=8)
    with pytest.raises(ConfigError, match="another model"):
        predict("demo", rows, out=out, max_new_tokens=8)
    (tmp_path / "a.csv.unfinished" / "answers.jsonl").write_text('{"row": 1}\n')
    with pytest.raises(QdoraError, match=r"answers.jsonl.*--overwrite begins anew"):
        predict(tuned, rows, out=out, max_new_tokens=8)
    (tmp_path / "a.csv.unfinished" / "record.json").write_text("{")
    with pytest.raises(QdoraError, match=r"record.json.*--overwrite begins anew"):
        predict(tuned, rows, out=out, max_new_tokens=8)
    predict(tuned, rows, out=out, max_new_tokens=9, overwrite=True)
    assert len(list(csv.DictReader(out.open()))) == 3


def test_two_at_once_do_not_write_one_file(tuned: ChatModel, questions: list[str], tmp_path: Path) -> None:
    rows, out = [{"question": questions[0]}], tmp_path / "a.jsonl"
    held = begun(out, {"questions": {"rows": 1}}, more={}, window=8, overwrite=False)
    with held, pytest.raises(RunLocked, match=rf"in use by process {os.getpid()} .*or write another file"):
        predict(tuned, rows, out=out)


def test_bad_rows_stay_in_the_output_and_are_named(tuned: ChatModel, questions: list[str], tmp_path: Path) -> None:
    data = _lines(tmp_path / "q.jsonl", [{"question": text} for text in questions[:5]])
    long = {"question": "word " * (tuned.source.max_length + 1)}
    with data.open("a") as file:
        file.write('{broken\n{"question": " ", "id": 7}\n' + json.dumps(long) + "\n")
    with heard() as told:
        predict(tuned, data, out=tmp_path / "a.jsonl", max_new_tokens=4)
    made = _read(tmp_path / "a.jsonl")
    assert [row["error"] is None for row in made] == [True] * 5 + [False] * 3
    assert f"{data}:6: the line is not valid JSON" in made[5]["error"] and made[6]["id"] == 7
    assert f"the model takes {tuned.source.max_length:,}" in made[7]["error"] and made[7]["answer"] is None
    assert f"2 rows cannot be asked, which the output says: {data}:6" in told.getvalue()
    assert "3 rows without an answer; `error` says why" in told.getvalue()
    with pytest.raises(DataError, match="cannot be asked"):
        predict(tuned, _lines(tmp_path / "b.jsonl", [{"question": ""}] * 3), out=tmp_path / "b.out.jsonl")
    with pytest.raises(QdoraError, match="none of the first 2 rows can be answered"):
        predict(tuned, [long, long])
    with pytest.raises(ConfigError, match="must be at least 1"):
        predict(tuned, [long], max_new_tokens=0)


def test_columns_of_the_rows_stay_beside_ours(tuned: ChatModel, questions: list[str], tmp_path: Path) -> None:
    rows = [{"question": questions[0], "answer": "gold", "tokens": 3, "predicted_answer": "old"}]
    with heard() as told:
        made = predict(tuned, rows, max_new_tokens=4)
    assert list(made[0]) == [*rows[0], "predicted_answer_2", "stopped_by", "predicted_tokens"]
    assert {key: made[0][key] for key in rows[0]} == rows[0]
    assert "in column `predicted_answer_2`, since the rows have a column `answer`" in told.getvalue()
    assert "mine" in predict(tuned, rows, max_new_tokens=4, answer_column="mine")[0]
    with pytest.raises(ConfigError, match="--answer-column answer: the rows have"):
        predict(tuned, rows, answer_column="answer")


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "json", "jsonl"])
def test_every_form_comes_back_as_it_was(tuned: ChatModel, questions: list[str], tmp_path: Path, ending: str) -> None:
    from qdora_fast.data.read.readers import read_file

    texts = ['with "quotes", and\nlines', "007", "NA", "", "ü \U0001f600"]
    rows = [{"question": text, "note": note} for text, note in zip(questions, texts, strict=False)]
    first, again = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    made = predict(tuned, rows, out=first, max_new_tokens=6)
    read = [each.row for each in read_file(first)]
    assert [{key: str(value) for key, value in row.items()} for row in read] == [
        {key: str(value) for key, value in row.items()} for row in made
    ]
    more = predict(tuned, first, out=again, max_new_tokens=6)
    assert [row["predicted_answer"] for row in more] == [row["answer"] for row in made]
    assert [{key: row[key] for key in read[0]} for row in (each.row for each in read_file(again))] == read


def test_parquet_keeps_its_types_and_other_forms_say_what_they_cannot_hold(
    tuned: ChatModel, questions: list[str], tmp_path: Path
) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {
            "question": questions[:2],
            "at": pyarrow.array([0, None], pyarrow.timestamp("ms")),
            "picture": [b"\x00\xff", None],
            "small": pyarrow.array([1, 2], pyarrow.int8()),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "q.parquet")
    predict(tuned, tmp_path / "q.parquet", out=tmp_path / "a.parquet", max_new_tokens=4)
    made = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert made.select(table.column_names).equals(table)
    assert made.column_names[4:] == ["answer", "stopped_by", "tokens"]
    with pytest.raises(ConfigError, match=r"row 1: a value of type bytes is no JSON; write a \.parquet"):
        predict(tuned, tmp_path / "q.parquet", out=tmp_path / "a.jsonl")
    mixed = [{"question": "a", "x": 1}, {"question": "b", "x": [2]}]
    with pytest.raises(ConfigError, match=r"column `x` is no column of a table .*write a \.jsonl"):
        predict(tuned, mixed, out=tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match=r"written are \.jsonl, .*by the file's ending"):
        predict(tuned, mixed, out=tmp_path / "b.xlsx")
    with pytest.raises(ConfigError, match="not a file"):
        predict(tuned, mixed, out=tmp_path)


def test_a_table_in_memory_comes_back_as_one(tuned: ChatModel, questions: list[str]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"question": questions[:3], "n": [1, 2, 3]}, index=["a", "b", "c"])
    made = predict(tuned, frame, max_new_tokens=6)
    assert list(made.index) == ["a", "b", "c"] and list(made.columns)[:3] == ["question", "n", "answer"]
    assert list(made["answer"]) == [row["answer"] for row in predict(tuned, frame.to_dict("records"), max_new_tokens=6)]
    assert "answer" not in frame
    with pytest.raises(DataError, match="row 1 is str; each must be a dictionary"):
        predict(tuned, ["What is the capital of Chad?"])


def test_where_memory_runs_out_batches_are_smaller_and_one_row_costs_no_other(
    tuned: ChatModel, questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": text} for text in questions[:6]]
    expected = [row["answer"] for row in predict(tuned, rows, max_new_tokens=6, batch_size=1)]
    written, longest = ManyAnswers._written, max(len(tuned.source.prompt([_user(text)])) for text in questions[:6])

    def scarce(self: ManyAnswers, prompts: Any, number: int) -> Any:
        if len(prompts) > 2 or max(map(len, prompts)) == longest:
            raise MemoryError("out of memory")
        return written(self, prompts, number)

    monkeypatch.setattr(ManyAnswers, "_written", scarce)
    made = predict(tuned, rows, max_new_tokens=6, batch_size=4)
    told = [row for row in made if row.get("error")]
    assert 0 < len(told) < 6 and all("do not fit into memory" in row["error"] for row in told)
    assert all(row["answer"] in (text, None) for row, text in zip(made, expected, strict=True))


def test_a_template_that_takes_no_row_is_refused_before_weights_are_read(
    demo_run: RunFolder, questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdora_fast.inference.loading import Source

    def refused(*_: Any, **__: Any) -> list[int]:
        raise ConfigError("the chat template leaves out the system message")

    monkeypatch.setattr(Source, "prompt", refused)
    monkeypatch.delattr("qdora_fast.models.loading.load_trained")
    with pytest.raises(ConfigError, match="none of the first 2 rows can be asked. row 1: .*leaves out the system"):
        predict(demo_run.path, [{"question": text} for text in questions[:2]], system="Be brief.")


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_server_gives_the_answers_of_its_model(
    tuned: ChatModel, questions: list[str], server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": text} for text in questions[:4]] + [{"question": "word " * 3000}]
    with heard() as told:
        made = predict(server, rows, max_new_tokens=24)
    here = predict(tuned, rows, max_new_tokens=24)
    assert [row["answer"] for row in made] == [row["answer"] for row in here]
    assert [row["stopped_by"] for row in made[:4]] == ["stop token"] * 4 and "refuses it" in made[4]["error"]
    assert f"served at {server}" in told.getvalue()
    assert predict(server.removesuffix("/v1"), rows[:1], max_new_tokens=2)[0]["stopped_by"] == "length"
    with pytest.raises(ConfigError, match=f"no model 'another'; it has {tuned.source.name}"):
        predict(server, rows, server_model="another")
    with pytest.raises(ConfigError, match="no server answers there"):
        predict("http://127.0.0.1:1/v1", rows)
    with pytest.raises(ConfigError, match="the address holds a password"):
        predict(server.replace("http://", "http://me:secret@"), rows)


def test_a_server_wants_its_password(tuned: ChatModel, questions: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": questions[0]}]
    with served(tuned, password="let-me-in-please") as url:
        monkeypatch.delenv("QDORA_FAST_API_KEY", raising=False)
        with pytest.raises(ConfigError, match="QDORA_FAST_API_KEY"):
            predict(url, rows)
        monkeypatch.setenv("QDORA_FAST_API_KEY", "let-me-in-please")
        assert predict(url, rows, max_new_tokens=24)[0]["stopped_by"] == "stop token"


def test_the_shape_of_the_training_is_the_shape_of_the_questions(
    tuned: ChatModel, own_demo_run: RunFolder, questions: list[str]
) -> None:
    text = own_demo_run.config_file.read_text()
    changed = text.replace("    prompt:\n", "    prompt: frage\n").replace("    response:\n", "    response: antwort\n")
    assert changed != text
    own_demo_run.config_file.write_text(changed)
    there = replace(tuned, source=replace(tuned.source, folder=own_demo_run.adapter))
    (made,) = predict(there, [{"frage": questions[0], "question": "Hello"}], max_new_tokens=24)
    assert made["answer"] == answer(tuned, [_user(questions[0])], SamplingParams(24)).text
    (made,) = predict(there, [{"question": questions[1]}], max_new_tokens=24)
    assert made["answer"] == answer(tuned, [_user(questions[1])], SamplingParams(24)).text
    (made,) = predict(tuned, [{"ask": questions[0]}], max_new_tokens=24, overrides=["data.columns.prompt=ask"])
    assert made["answer"] == answer(tuned, [_user(questions[0])], SamplingParams(24)).text
    with pytest.raises(ConfigError, match=r"--set train.epochs=1: only data\.\*"):
        predict(tuned, [{"ask": "x"}], overrides=["train.epochs=1"])


def test_a_system_message_is_for_rows_without_one(tuned: ChatModel, questions: list[str]) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [{"question": questions[0]}, {"messages": [system, _user(questions[0])]}]
    said = answer(tuned, [system, _user(questions[0])], SamplingParams(12)).text
    made = [predict(tuned, [row], system="Be brief.", max_new_tokens=12)[0]["answer"] for row in rows]
    assert made == [said, said]


def test_answers_are_held_against_a_schema(tuned: ChatModel, questions: list[str], tmp_path: Path) -> None:
    rows, schema = [{"question": questions[0]}], tmp_path / "s.json"
    schema.write_text('{"type": "object", "required": ["name"]}')
    try:
        import jsonschema  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"--schema needs jsonschema; install with"):
            predict(tuned, rows, schema=schema)
        return
    from qdora_fast.recipes.predict.schema import AnswerSchema

    (made,) = predict(tuned, rows, schema=schema, max_new_tokens=6)
    assert made["valid_json"] is False and made["json_error"].startswith("no JSON")
    held = AnswerSchema(schema)
    assert held.problem('{"name": 1}') == "" and held.problem(None) != ""
    assert held.problem("[]").startswith("$: [] is not of type") and "required" in held.problem("{}")
    assert held.problem('```json\n{"name": 1}\n```').startswith("no JSON")
    schema.write_text('{"$ref": "http://127.0.0.1:1/other.json"}')
    with pytest.raises(ConfigError, match="a reference in it cannot be followed"):
        AnswerSchema(schema).problem("{}")
    for wrong in ('{"type": "nonsense"}', "[]", "{"):
        schema.write_text(wrong)
        with pytest.raises(ConfigError, match=r"s\.json"):
            AnswerSchema(schema)


@pytest.mark.exhaustive
def test_the_command_goes_on_after_a_kill(demo_run: RunFolder, questions: list[str], tmp_path: Path) -> None:
    data = _lines(tmp_path / "q.jsonl", [{"question": text} for text in questions * 20])
    arguments = ["predict", str(demo_run.path), "--data", str(data), "--batch-size", "1", "--out"]
    command = [sys.executable, "-c", MAIN, *arguments]
    out, whole = tmp_path / "a.jsonl", tmp_path / "whole.jsonl"
    process = subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL)
    answers = tmp_path / "a.jsonl.unfinished" / "answers.jsonl"
    while not answers.is_file() or answers.read_bytes().count(b"\n") < 24:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    for target in (out, whole):
        subprocess.run([*command, str(target)], check=True, stderr=subprocess.DEVNULL)
    assert out.read_bytes() == whole.read_bytes() and len(_read(out)) == 400


def test_models_know_their_run(demo_run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(demo_run.path / "merged_16bit", tmp_path / "merged")
    opened = [open_model(path, SamplingParams()) for path in (demo_run.path, demo_run.adapter)]
    merged, elsewhere = (
        open_model(path, SamplingParams()) for path in (demo_run.path / "merged_16bit", tmp_path / "merged")
    )
    assert opened[0].identity == opened[1].identity != merged.identity == elsewhere.identity
    assert [each.run and each.run.path.name for each in (*opened, merged, elsewhere)] == ["demo", "demo", "demo", None]
    assert [each.has_base for each in (*opened, merged)] == [True, True, False]
