"""What `make real` does with the model: train, compare with the base, export, and one answer."""

from __future__ import annotations

from benchmarks.real.work import PRESET, Figures, Stage, Work, as_booking, question
from qdora_fast.system.json_files import read_object
from qdora_fast.system.run_folder import RunFolder

_ANSWER = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, text = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype="auto"), AutoTokenizer.from_pretrained(folder)
asked = tokenizer.apply_chat_template(
    [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
said = model.generate(**asked, max_new_tokens=48, do_sample=False)[0, asked["input_ids"].shape[1] :]
print(tokenizer.decode(said, skip_special_tokens=True))
"""


def train(work: Work) -> Figures:
    """Train, evaluate and export in one command. The gate: more held-out rows are right than with the base and their
    loss is lower, both with intervals that exclude zero; and the export is proven."""
    evaluation, export = work.run / "evaluation/evaluation.json", work.run / "merged_16bit/export.json"
    if not (evaluation.is_file() and export.is_file()):
        work.command("train", "train", PRESET, *work.settings(), "--auto-resume")
    evaluated, exported = read_object(evaluation), read_object(export)
    task, loss = evaluated["task"], evaluated["heldout_loss"]
    steps = RunFolder(work.run).read_rows("metrics.jsonl")
    speeds = sorted(step["tokens_per_second"] for step in steps if "tokens_per_second" in step)
    better = task["ci95"][0] > 0 and loss["ci95"][1] < 0
    return {
        "passed": bool(better and exported["proof"]["passed"]),
        "steps": work.steps,
        "tokens_per_second": speeds[len(speeds) // 2],
        "questions": task["n"],
        "accuracy": {name: task[name] for name in ("base", "tuned", "difference", "ci95")},
        "heldout_loss": {name: loss[name] for name in ("n", "base", "tuned", "difference", "ci95")},
        "export": {"merge_base": exported.get("merge_base"), "checks": len(exported["proof"]["checks"])},
    }


def answer(work: Work) -> Figures:
    """The merged folder, opened by plain Transformers in a fresh process, answers a message that no row holds."""
    text, wanted = question()
    said = work.python("answer", "-c", _ANSWER, str(work.run / "merged_16bit"), text).strip()
    return {"passed": as_booking(said) is not None, "answer": said, "right": as_booking(said) == wanted}


SHORT: dict[str, Stage] = {"train": train, "answer": answer}
