"""Small files that ask for gigabytes or hours: templates, archives, tables, YAML, numbers, headers, tokenizers.

Each has 4 GiB of address space and 20 seconds of a processor. It ends in words, with the exit code of a wrong request,
wrong data or a damaged file; a few are no bombs at all for whoever reads carefully, and are simply read.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from faults.hostile.attack import CHAT, REFUSED, Case, attack, change, config, own_base, table
from faults.trial import Trial

_MIB = 2**20
_SAYS = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"


def _grown(step: str, first: str = "'aaaaaaaa'") -> str:
    """A template in which x becomes `step` forty times."""
    loop = "{% for i in range(40) %}{% set n.x = STEP %}{% endfor %}{{ n.x | string | length }}"
    return ("{% set n = namespace(x=FIRST) %}" + loop).replace("FIRST", first).replace("STEP", step)


_TEMPLATES = {
    "two loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i * j %}{% endfor %}{% endfor %}x",
    "'a' * 20e9": "{% set x = 'a' * 20000000000 %}{{ x | length }}",
    "'a' * 2e9": "{% set x = 'a' * 2000000000 %}{{ messages[0].content }}",
    "a list * 1e9": "{% set x = [1] * 1000000000 %}{{ messages[0].content }}",
    "30 doublings": _grown("n.x ~ n.x"),
    "doublings by join": _grown("[n.x, n.x] | join"),
    "doublings by format": _grown("'%s%s' | format(n.x, n.x)"),
    "doublings by replace": _grown("n.x.replace('a', 'aa')"),
    "a list that doubles": _grown("n.x + n.x", "[1]"),
    "a number that doubles its digits": _grown("n.x * n.x", "9"),
    "a power in a variable": _grown("n.x ** 9", "9"),
    "tojson of a deep list": "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}"
    "{{ n.x | tojson }}",
    "9 ** (9 ** 8)": "{{ (9 ** (9 ** 8)) % 7 }}",
    "'%2000000000d'": "{{ '%2000000000d' % 1 }}",
    "format of 2e9": "{{ '{:2000000000d}'.format(1) }}",
    "ljust": "{{ 'a'.ljust(3000000000) }}",
    "center": "{{ 'a' | center(3000000000) }}",
    "indent": "{{ ('a\n' * 100000) | indent(100000) }}",
    "an endless macro": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "two macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a recursive loop": "{% for m in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "3,000 brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "3,000 blocks": "{% if true %}" * 3000 + "x" + "{% endif %}" * 3000,
    "3,000 additions": "{{ " + "+".join(["1"] * 30000) + " }}",
    "a text of 1e9 by strftime": "{{ strftime_now('%Y' * 100000000) }}",
    "an output of 10 GB": "{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
    "a sort of a product": "{{ (range(99999) | list * 3000) | sort | length }}",
    "batch": "{{ range(3) | batch(2000000000, 'x') | list | length }}",
    "slice": "{{ [1] | slice(2000000000) | list | length }}",
    "wordwrap": "{{ ('a ' * 5000000) | wordwrap(1) | length }}",
    "filesizeformat of a long number": "{{ ('9' * 100000) | int }}",
    "an int of 10 million digits": "{{ ('9' * 10000000) | int % 7 }}",
}
_YAML = {
    "aliases that multiply": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
    "an alias that holds itself": "model: &m {name: demo, x: *m}\n",
    "a tag of Python": "model: {name: !!python/object/apply:os.getcwd []}\n",
    "a key twice": "model: {name: demo}\nmodel: {name: x}\n",
    "10,000 levels": "a: " + "[" * 10_000 + "]" * 10_000,
    "a million keys": "".join(f"k{i}: {i}\n" for i in range(1_000_000)),
    "a line of 10 MB": "model: {name: " + "a" * 10_000_000 + "}\n",
    "a number of 1 MB": "train: {seed: " + "9" * 1_000_000 + "}\n",
    "sexagesimal": "train: {seed: " + "59:" * 5_000 + "1}\n",
    "merge keys": "x: &x {name: demo}\nmodel: {<<: *x}\n",
    "merge keys that double": "a: &a {k: v}\n"
    + "".join(f"x{i}: &x{i} {{<<: [*{p}, *{p}]}}\n" for i, p in enumerate(["a", *[f"x{j}" for j in range(40)]])),
}
_NUMBERS = (
    *("train.batch_size=1e300", "train.batch_size=" + "9" * 5000, "train.effective_batch=" + "9" * 40),
    *("train.max_steps=" + "9" * 30, "train.epochs=1e308", "train.epochs=1e9", "train.learning_rate=.inf"),
    *("train.learning_rate=nan", "train.save_steps=0x7fffffffffffffffffff", "train.seed=-1", "train.warmup=1e-320"),
    *("model.max_length=1e18", "adapter.alpha=1e308", "adapter.r=-1", "adapter.layers=0-" + "9" * 5000),
    *("adapter.layers=" + "0-9999," * 20_000 + "1", "data.held_out=0.8999999999999999", "data.workers=" + "9" * 12),
    *("data.max_rows=" + "9" * 30, "evaluation.max_new_tokens=" + "9" * 30, "evaluation.max_rows=" + "9" * 30),
    *("evaluation.batch_size=" + "9" * 30, "train.gradient_accumulation=" + "9" * 18, "engine.resident=1e300"),
    *("adapter.target_modules=" + json.dumps(["q" * 100_000]), "adapter.trainable_tokens=[" + "9" * 300 + "]"),
    *("train.loraplus_ratio=1e308", "train.max_grad_norm=1e-320", "train.vram=1e-300", "run.dir=/proc/1"),
)
_CONFIGS: dict[str, dict[str, Any]] = {
    "10 million layers": {"num_hidden_layers": 10**7},
    "a layer less than none": {"num_hidden_layers": -1},
    "vocabulary of 1e13": {"vocab_size": 10**13},
    "a size of 4,000 digits": {"hidden_size": 10**4000},
    "a size of -1": {"hidden_size": -1},
    "a size of text": {"hidden_size": "x"},
    "a size of 1e300": {"hidden_size": 1e300},
    "a size of 2e9": {"hidden_size": 2 * 10**9, "intermediate_size": 2 * 10**9},
    "no heads": {"num_attention_heads": 0},
    "2e9 heads": {"num_attention_heads": 2 * 10**9},
    "layer types without end": {"layer_types": ["full_attention"] * 2_000_000},
    "positions of 2e9": {"max_position_embeddings": 2 * 10**9},
    "rope of another kind": {"rope_parameters": {"rope_type": "x" * 1000, "factor": 1e308}},
    "50 levels of text_config": {"text_config": json.loads('{"text_config":' * 50 + "{}" + "}" * 50)},
}


def _template_of_base(text: str, trial: Trial) -> None:
    base = own_base(trial)
    (base / "chat_template.jinja").write_text(text)
    attack(trial, "chat", base, *CHAT, codes=REFUSED, limited=True)


def _template_of_rows(text: str, trial: Trial) -> None:
    file = trial.folder / "chat.jinja"
    file.write_text(text)
    attack(trial, "data", config(trial, data={"template": str(file)}), codes=REFUSED, limited=True)


def _rows(name: str, make: Callable[[Path], object], codes: tuple[int, ...], trial: Trial) -> None:
    file = trial.folder / name
    make(file)
    attack(trial, "data", config(trial, data={"path": str(file), "max_rows": None}), codes=codes, limited=True)


def _gzip(text: bytes, times: int, file: Path) -> None:
    """Members that unpack to `times` MiB of this text."""
    member = gzip.compress(text * (_MIB // len(text)), 9)
    file.write_bytes(member * times)


def _zstd(text: bytes, times: int, file: Path) -> None:
    import zstandard

    file.write_bytes(zstandard.ZstdCompressor(level=19).compress(text * (64 * _MIB // len(text))) * (times // 64))


def _csv(columns: int, rows: int, file: Path) -> None:
    file.write_text(",".join(f"c{i}" for i in range(columns)) + "\n" + (",".join("1" * columns) + "\n") * rows)


def _open_quote(file: Path) -> None:
    file.write_bytes(b'a,b\n"' + b"x\n" * (70 * _MIB // 2))


def _keys(file: Path) -> None:
    file.write_text("{" + ",".join(f'"k{i}": {i}' for i in range(500_000)) + "}\n")


def _every_row_has_other_keys(file: Path) -> None:
    rows = ("{" + ",".join(f'"r{row}k{i}": 1' for i in range(200)) + "}\n" for row in range(2_000))
    file.write_text("".join(rows))


def _deep(file: Path) -> None:
    file.write_text('{"instruction":' + "[" * 100_000 + "]" * 100_000 + "}\n")


def _one_array(file: Path) -> None:
    with file.open("w") as opened:
        opened.write("[" + "[" * 50 + "1" + "]" * 50 + ',{"instruction": "a", "output": "' + "b" * 70 * _MIB + '"}]')


def _dictionary(file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["a" * 200_000])
    pq.write_table(pa.table({"instruction": words, "output": pa.array(["b"] * 100_000)}), file, compression="zstd")


def _one_value(file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    long = pa.array(["a" * (400 * _MIB)])
    pq.write_table(pa.table({"instruction": long, "output": pa.array(["b"])}), file, compression="zstd")


def _structs(file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    inner: Any = pa.array(["x"])
    for _ in range(150):
        inner = pa.StructArray.from_arrays([inner], ["s"])
    pq.write_table(pa.table({"instruction": inner}), file, compression="zstd")


def _columns(file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({f"c{i}": [1] for i in range(20_000)}), file)


def _lists(file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"instruction": [list(range(1000)) * 20_000], "output": ["b"]}), file, compression="zstd")


def _yaml(text: str, codes: tuple[int, ...], trial: Trial) -> None:
    file = trial.folder / "y.yaml"
    file.write_text(text + ("" if "model:" in text and "data:" in text else "data: {path: demo}\n"))
    attack(trial, "plan", file, codes=codes, limited=True)


def _number(text: str, trial: Trial) -> None:
    attack(trial, "plan", config(trial), "--set", text, codes=(0, 2, 10, 20), limited=True)


def _config_json(values: dict[str, Any], words: tuple[str, ...], trial: Trial) -> None:
    file = config(trial, model={"name": str(own_base(trial, **values))})
    attack(trial, words[0], file, *words[1:], codes=(0, 10, *REFUSED), limited=True)  # 10: it does not fit on the card


def _tokenizer(values: dict[str, Any], text: str, trial: Trial) -> None:
    base = own_base(trial)
    (base / "chat_template.jinja").write_text(_SAYS)
    change(base / "tokenizer.json", **values)
    attack(trial, "chat", base, "--once", text, "--max-new-tokens", "2", codes=(0, *REFUSED), limited=True)


def _header(make: Callable[[], bytes], trial: Trial) -> None:
    base = own_base(trial)
    (base / "chat_template.jinja").write_text(_SAYS)
    header = make()
    header += b" " * (-len(header) % 8)
    (base / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    attack(trial, "chat", base, *CHAT, codes=REFUSED, limited=True)


def _tensor(**values: Any) -> bytes:
    tensor = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | values
    return json.dumps({"model.embed_tokens.weight": tensor}).encode()


def _split(pattern: str) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [step]}}


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {f"template, {n}: chat": partial(_template_of_base, t) for n, t in _TEMPLATES.items()}
    cases |= {f"template, {n}: data": partial(_template_of_rows, t) for n, t in _TEMPLATES.items()}
    wrong, read = (2, 20), (0, 2, 20)
    files: dict[str, tuple[str, Callable[[Path], object], tuple[int, ...]]] = {
        "gz: a line of 6 GB": ("r.jsonl.gz", partial(_gzip, b'"', 6000), wrong),
        "gz: 6 GB of empty lines": ("r.jsonl.gz", partial(_gzip, b"\n", 6000), wrong),
        "gz: 6 GB of rows": ("r.jsonl.gz", partial(_gzip, b'{"a":1}\n', 6000), wrong),
        "gz of gz": ("r.jsonl.gz", lambda file: file.write_bytes(gzip.compress(gzip.compress(bytes(_MIB)))), wrong),
        "gz: a CSV of 6 GB": ("r.csv.gz", partial(_gzip, b"a,b\n", 6000), wrong),
        "zst: a line of 6 GB": ("r.jsonl.zst", partial(_zstd, b" ", 6016), wrong),
        "csv: 200,000 columns": ("r.csv", partial(_csv, 200_000, 1), wrong),
        "csv: 9,000 columns, 300 rows": ("r.csv", partial(_csv, 9_000, 300), read),
        "csv: an open quote": ("r.csv", _open_quote, wrong),
        "jsonl: 500,000 keys": ("r.jsonl", _keys, wrong),
        "jsonl: other keys in each row": ("r.jsonl", _every_row_has_other_keys, wrong),
        "jsonl: 100,000 levels": ("r.jsonl", _deep, wrong),
        "json: one array of 70 MB": ("r.json", _one_array, read),
        "parquet: 100,000 times a word of 200 kB": ("r.parquet", _dictionary, wrong),
        "parquet: one value of 400 MB": ("r.parquet", _one_value, wrong),
        "parquet: a list of 20 million": ("r.parquet", _lists, wrong),
        "parquet: 150 structs deep": ("r.parquet", _structs, wrong),
        "parquet: 20,000 columns": ("r.parquet", _columns, wrong),
    }
    cases |= {name: partial(_rows, *made) for name, made in files.items()}
    cases |= {f"yaml: {n}": partial(_yaml, t, (0, 10) if n == "merge keys" else (2,)) for n, t in _YAML.items()}
    cases |= {f"--set {text[:40]}": partial(_number, text) for text in _NUMBERS}
    for name, values in _CONFIGS.items():
        cases[f"config.json, {name}: plan"] = partial(_config_json, values, ("plan", "--card", "24"))
        cases[f"config.json, {name}: train"] = partial(_config_json, values, ("train",))
    cases |= {f"tokenizer: {p}": partial(_tokenizer, _split(p), "x" * 60) for p in ("(x+x+)+y", "(?:x|x)*!", "(.*)*!")}
    cases["tokenizer: a prefix of 100 MB"] = partial(
        _tokenizer, {"normalizer": {"type": "Prepend", "prepend": "x" * 10**8}}, "a"
    )
    headers: dict[str, Callable[[], bytes]] = {
        "90 MB of metadata": lambda: json.dumps({"__metadata__": {"x": "a" * 90_000_000}}).encode(),
        "1.2 million empty tensors": lambda: json.dumps(
            {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(1_200_000)}
        ).encode(),
        "a shape of 1e18": lambda: _tensor(shape=[10**9, 10**9], data_offsets=[0, 4 * 10**18]),
        "a shape that overflows": lambda: _tensor(shape=[2**63, 2**63]),
        "a million dimensions": lambda: _tensor(shape=[1] * 1_000_000),
        "offsets backwards": lambda: _tensor(data_offsets=[16, 0]),
        "10,000 levels": lambda: b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    }
    return cases | {f"safetensors: {name}": partial(_header, make) for name, make in headers.items()}


GROUP = table(
    "bombs",
    "small files that ask for much: templates, archives, tables, YAML, numbers, config.json, tokenizers, headers",
    "within 4 GiB and 20 s of CPU; exit code 2, 20 or 41, without a traceback",
    _cases(),
    small=50,
)
