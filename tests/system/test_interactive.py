"""A notebook is a shell of IPython with a kernel."""

from __future__ import annotations

import pytest
from stand_in_notebook import open_notebook

from qdora_fast.system.interactive import is_notebook, shell


def test_a_shell_with_a_kernel_is_a_notebook_and_one_without_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell() is None and not is_notebook()
    open_notebook(monkeypatch, kernel=None)
    assert shell() is not None and not is_notebook()
    open_notebook(monkeypatch)
    assert is_notebook()
