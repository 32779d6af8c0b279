"""A JSON file that others wrote is an object, or an error that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrify.core.errors import BadInput
from vitrify.core.json_file import read_json_object


def test_an_object_is_read_in_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"ü": [1, null]}'.encode())
    assert read_json_object(tmp_path / "a.json") == {"ü": [1, None]}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is not readable JSON"),
        (b"{", "is not readable JSON"),
        (b"\xff\xfe{}", "is not readable JSON"),
        (b"[" * 100_000, "is not readable JSON"),
        (b"[1]", "holds no JSON object"),
        (b"null", "holds no JSON object"),
        (b'"text"', "holds no JSON object"),
    ],
    ids=lambda v: repr(v[:5]),
)
def test_anything_else_names_the_file(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_json_object(path)
    assert caught.value.what.startswith(f"{path} {what}")
    assert caught.value.fix


def test_a_file_that_is_not_there_and_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"config\.json is missing"):
        read_json_object(tmp_path / "config.json")
    with pytest.raises(BadInput, match="is not readable JSON"):
        read_json_object(tmp_path)
