"""The curves of a training's loss."""

from __future__ import annotations

from qdora_fast.training.curves import loss_curves


def test_few_steps_are_drawn_as_they_are_and_many_are_averaged_before_each_step() -> None:
    steps = [(float(n), float(n % 2)) for n in range(400)]
    few, many = loss_curves(steps[:5], []), loss_curves(steps, [(9.0, 1.0)])
    assert [each.name for each in few if each.points] == ["training"] and list(few[1].points) == steps[:5]
    assert [each.name for each in many] == ["each step", "training, mean of 10 steps", "held out"]
    assert all(abs(y - 0.5) < 0.1 for _, y in many[1].points[5:-5]) and len(many[1].points) == 400
