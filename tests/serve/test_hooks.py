"""The server's hooks, of which a job names those that it wants."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrify.core.errors import BadInput
from vitrify.serve.hooks import Hooks


def test_hooks_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    hooks = Hooks([f"wildcards:folder={tmp_path}", f"wildcards:folder={tmp_path / 'other'}"])
    assert hooks.names == ("wildcards",)
    folders = [hook.given["folder"] for hook in hooks.wanted(None)]
    assert folders == [str(tmp_path), str(tmp_path / "other")]
    assert hooks.wanted(["wildcards"]) == hooks.wanted(None)
    assert hooks.wanted([]) == []


def test_a_hook_that_is_gone_is_not_left_out_in_silence() -> None:
    """A job may have waited through a restart without it."""
    assert Hooks([]).wanted(None) == []
    with pytest.raises(BadInput, match="no hook 'wildcards'"):
        Hooks([]).wanted(["wildcards"])
