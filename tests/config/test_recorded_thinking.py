"""`data.thinking` in YAML, and in the config of a run from before there was it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdora_fast.config.loader import load_config
from qdora_fast.config.recorded import read_config, write_config
from qdora_fast.recipes.auto import adopt
from qdora_fast.system.run_folder import RunFolder

CONFIG = "model: {name: demo}\ndata: {path: demo%s}\n"


@pytest.mark.parametrize(
    ("written", "setting"),
    [("", "auto"), (", thinking: off", "off"), (", thinking: on", "on"), (", thinking: 'off'", "off"),
     (", thinking: false", "off"), (", thinking: as_is", "as_is")],
)  # fmt: skip
def test_on_and_off_need_no_quotes(written: str, setting: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(CONFIG % written)
    assert load_config(tmp_path / "a.yaml").data.thinking == setting
    if setting != "as_is":
        assert load_config(tmp_path / "a.yaml", [f"data.thinking={setting}"]).data.thinking == setting


def test_a_run_from_before_goes_on_as_it_was(tmp_path: Path) -> None:
    earlier = RunFolder(tmp_path)
    earlier.config_file.write_text(CONFIG % "")
    assert read_config(earlier).data.thinking == "as_is"
    now = load_config(earlier.config_file)
    assert adopt(now, read_config(earlier)).data.thinking == "as_is"
    asked = now.model_copy(update={"data": now.data.model_copy(update={"thinking": "off"})})
    assert adopt(asked, read_config(earlier)).data.thinking == "off"
    write_config(earlier, now)
    assert read_config(earlier).data.thinking == "auto"
