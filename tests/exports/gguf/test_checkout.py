"""A llama.cpp checkout: found or explained."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_in_checkout import make_checkout

from qdora_fast.exports.gguf.checkout import CONVERTED, QUANTIZED, bytes_needed, check_type, tools
from qdora_fast.system.errors import ConfigError


def test_a_mistyped_type_names_the_nearest() -> None:
    assert check_type("Q4_K_M") == "q4_k_m"
    with pytest.raises(ConfigError, match=r"q4km: unknown \(did you mean q4_k_m\?\)"):
        check_type("q4km")


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no convert_hf_to_gguf.py in it.*git clone"):
        tools(tmp_path, "q8_0")


@pytest.mark.parametrize("place", ["build/bin/llama-quantize", "bin/llama-quantize", "llama-quantize"])
def test_the_quantiser_is_found_where_builds_put_it(tmp_path: Path, place: str) -> None:
    checkout = make_checkout(tmp_path / "llama.cpp", quantizer=place)
    assert Path(tools(checkout, "q4_k_m")[1]).samefile(checkout / place)
    assert tools(checkout, "f16")[1] == ""


def test_a_quantiser_that_was_not_built_comes_with_the_command_that_builds_it(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "llama cpp", quantizer="")
    with pytest.raises(ConfigError, match=r"cmake -B '.*llama cpp'/build .* --target llama-quantize"):
        tools(checkout, "q4_k_m")


def test_quantised_types_need_room_for_16_bits_more() -> None:
    assert bytes_needed(1000, "f16") == 2000
    assert all(bytes_needed(1000, kind) > 2000 for kind in QUANTIZED)
    assert bytes_needed(1000, "q8_0") < 2000 < bytes_needed(1000, "f32")
    assert not {*CONVERTED} & {*QUANTIZED}
