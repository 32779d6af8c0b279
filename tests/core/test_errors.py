"""One tree: each error says what and what to do, and has a code and an exit status of its own."""

from __future__ import annotations

import pickle

import pytest

from vitrify.core import errors
from vitrify.core.errors import VitrifyError

KINDS = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, VitrifyError)]

# What scripts and servers rely on: a change here breaks them.
EXIT_CODES = {
    "VitrifyError": 1,
    "UsageError": 2,
    "BadInput": 2,
    "Busy": 2,
    "DiskError": 2,
    "ProofFailed": 3,
    "MissingDependency": 4,
    "DeviceError": 5,
    "RuntimeFailure": 5,
    "NotFinite": 5,
    "BadArtifact": 6,
    "Cancelled": 130,
}


def test_exit_codes_are_those_that_are_promised() -> None:
    assert {kind.__name__: kind.exit_code for kind in KINDS} == EXIT_CODES


def test_codes_tell_the_kinds_apart() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert all(code == code.lower() and " " not in code for code in codes)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_an_error_says_what_and_fix_also_from_another_process(kind: type[VitrifyError]) -> None:
    error = kind("It is broken.", "Mend it.")
    assert str(error) == "It is broken. Mend it."
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.what, back.fix, str(back)) == (kind, "It is broken.", "Mend it.", str(error))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_an_error_without_a_fix_cannot_be_made(kind: type[VitrifyError]) -> None:
    with pytest.raises(TypeError):
        kind("It is broken.")  # type: ignore[call-arg]
