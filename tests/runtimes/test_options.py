"""Options of one runtime alone: read from text, refused where nobody acts on them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from vitrify.core.errors import UsageError
from vitrify.core.registry import load_runtime
from vitrify.runtimes.base import Options
from vitrify.runtimes.options import SPECIAL, check_options, left_out, option_kind, options_for, parse_options


@dataclass
class Adapter:
    name: str
    takes: tuple[str, ...]


EAGER, PLAN = Adapter("torch", ("compile", "attention")), Adapter("tensorrt", ("cuda_graphs", "resident_weights"))


def test_texts_become_options() -> None:
    given = ["provider=tensorrt", "channels-last", "cuda_graphs=no", "resident_weights=1000", "static=on"]
    options = parse_options(given, Options(threads=3))
    assert options == Options(threads=3, provider="tensorrt", channels_last=True, resident_weights=1000, static=True)
    assert parse_options([]) == Options()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour=red", r"no runtime option 'colour'.*provider, compile, attention"),
        ("threads=many", r"threads is 'many'.*threads=4"),
        ("resident_weights=-1", r"resident_weights is '-1'"),
        ("cuda_graphs=perhaps", r"cuda_graphs is 'perhaps'.*cuda_graphs=yes or cuda_graphs=no"),
    ],
)
def test_a_text_that_is_no_option_is_told(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_options([text])


def test_every_special_option_is_one_and_does_nothing_by_itself_but_winograd() -> None:
    names = {f.name for f in fields(Options)} - {"optional"}
    assert set(SPECIAL) < names
    assert [name for name in SPECIAL if getattr(Options(), name)] == ["winograd"]
    assert {option_kind(name) for name in names} == {bool, int, str}


def test_an_option_that_no_runtime_takes_is_refused() -> None:
    check_options([EAGER, PLAN], Options(compile="whole", cuda_graphs=True))
    with pytest.raises(UsageError, match=r"torch has no option cuda_graphs.*torch takes attention, compile"):
        check_options([EAGER], Options(compile="whole", cuda_graphs=True))
    with pytest.raises(UsageError, match=r"openvino has no option provider.*openvino takes lazy, static"):
        check_options([load_runtime("openvino")], Options(provider="cuda"))
    with pytest.raises(UsageError, match=r"aotinductor has no option static.*none of its own"):
        check_options([Adapter("aotinductor", ())], Options(static=True))


def test_an_optional_one_that_no_runtime_takes_is_left_out() -> None:
    options = Options(cuda_graphs=True, resident_weights=5, optional=("resident_weights",))
    with pytest.raises(UsageError, match=r"torch has no option cuda_graphs[.]"):
        check_options([EAGER], options)
    assert left_out([EAGER], options) == ["resident_weights"]
    assert left_out([PLAN], options) == []
    assert options_for(EAGER, options).resident_weights is None


def test_each_runtime_gets_its_own_options() -> None:
    options = Options(threads=2, compile="whole", resident_weights=5)
    assert options_for(EAGER, options) == Options(threads=2, compile="whole")
    assert options_for(PLAN, options) == Options(threads=2, resident_weights=5)


def test_what_adapters_take_are_special_options() -> None:
    for name in ("onnx", "openvino", "torch", "tensorrt-rtx"):
        assert set(getattr(load_runtime(name), "takes", ())) <= set(SPECIAL)
