"""Fine-tune the embedded base, compare it with its base, and ask the merged model.

    .venv/bin/python examples/quickstart.py

Without a GPU this takes a few minutes. On a GPU put the name of a preset
(`qdora-fast presets`) and your own file in place of "demo".
"""

from __future__ import annotations

import qdora_fast


def main(runs: str = "runs", **train: float) -> str:
    """Run the whole path; returns the merged model's answer."""
    run = qdora_fast.train("demo", run={"dir": runs, "name": "quickstart"}, train=train)

    task = run.read_json("evaluation/evaluation.json")["task"]
    print(f"right on {task['n']} held-out questions: base {task['base']:.0%}, tuned {task['tuned']:.0%}")
    print(f"  {task['words']}")

    proof = run.read_json("merged_16bit/export.json")["proof"]
    print(f"the merged model is the trained one: {proof['passed']} (KL {proof['kl']:.2g} nats)")

    from qdora_fast.inference import answer
    from qdora_fast.recipes.chat import load

    question = "What is the capital of Japan?"
    said = answer(load(run.path / "merged_16bit"), [{"role": "user", "content": question}])
    print(f"{question} {said.text}")
    return said.text


if __name__ == "__main__":
    main()
