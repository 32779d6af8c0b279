"""What is made before a bench: kept while nothing that it depends on changes, and its failures told again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vitrify.bench import preparing
from vitrify.bench.preparing import made, required, sources
from vitrify.core.errors import BadInput

# copies what it is given, and leaves a dot each time that it runs
APPEND = (
    "import sys; open(sys.argv[1] + '.log', 'a').write('.'); open(sys.argv[1], 'w').write(open(sys.argv[2]).read())"
)


def make(tmp_path: Path, text: str = APPEND) -> int:
    """How often the command has run."""
    target, given = tmp_path / "made" / "target", tmp_path / "given"
    made("making it", target, [sys.executable, "-c", text, str(target), str(given)], [given])
    return len((tmp_path / "made" / "target.log").read_text())


def test_it_is_made_once(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("a")
    assert [make(tmp_path), make(tmp_path)] == [1, 1]
    required(tmp_path / "made" / "target")


def test_it_is_made_anew_when_anything_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    given.write_text("a")
    make(tmp_path)
    assert make(tmp_path, APPEND + "# another command") == 2
    given.write_text("b")
    os.utime(given, ns=(1, 1))
    assert make(tmp_path) == 3
    assert (tmp_path / "made" / "target").read_text() == "b"
    (tmp_path / "made" / "target").unlink()
    assert make(tmp_path) == 4
    (tmp_path / "made" / "target.made.json").write_text("{")  # killed while it was written
    assert make(tmp_path) == 5
    monkeypatch.setattr(preparing, "sources", lambda: "another state of our sources")
    assert make(tmp_path) == 6
    assert capsys.readouterr().err.count("making it ...") == 6


def test_our_sources_have_a_digest_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sources()
    assert before == sources()
    (tmp_path / "core").mkdir()
    monkeypatch.setattr(preparing, "PACKAGE", tmp_path)
    found = set()
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2")):
        (tmp_path / "core" / name).write_text(text)
        found.add(sources())
    assert len({before, *found}) == 4


def test_a_failure_is_told_again_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("a")
    make(tmp_path)
    with pytest.raises(BadInput, match=r"making it failed \(exit 1\):\n  no such model"):
        make(tmp_path, "import sys; sys.exit('no such model')")
    target = tmp_path / "made" / "target"
    assert not target.exists()
    with pytest.raises(BadInput, match="no such model") as caught:
        required(target)
    assert caught.value.fix.startswith("Run it alone: ")
    assert make(tmp_path) == 2
    required(target)


def test_what_was_never_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="target was not made"):
        required(tmp_path / "target")
