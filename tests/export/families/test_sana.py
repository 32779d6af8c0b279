"""What the exporter must get right for Sana: Gemma's masks, its twins, and what an optimizer would drop."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.export.families.gemma import GEMMA2
from vitrify.export.families.narrow import are_alike
from vitrify.export.families.sana import TRANSFORMER
from vitrify.export.families.vae import VAE_DECODER, VAE_ENCODER

from .sana_configs import DC_AE, FOLDING, GEMMA, GEMMA_2B, SANA, SANA_600M, SANA_1600M

torch = pytest.importorskip("torch", reason="needs vitrify[export]")
pytest.importorskip("diffusers", reason="needs vitrify[export]")
transformers = pytest.importorskip("transformers", reason="needs vitrify[export]")


@pytest.fixture(scope="module")
def proved() -> Callable[..., Any]:
    """proved(spec, config): the graph, which the twin's proof holds to its module at two sizes and batches."""
    pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
    from vitrify.export.graph import graph_from_module, operators
    from vitrify.export.twin import prove_graph

    def prove(spec: Any, config: dict[str, Any]) -> Any:
        graph = graph_from_module(spec, config)
        assert prove_graph(spec, config, operators(graph))["relative"] < 5e-5
        return graph

    return prove


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' module, and a session of its graph."""
    ort = pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
    import onnx_ir as ir

    from vitrify.core.safetensors_header import open_checkpoint
    from vitrify.export.graph import graph_from_module, quiet
    from vitrify.export.link import link_weights
    from vitrify.export.names import bind_module
    from vitrify.export.twin import random_module

    folder = tmp_path_factory.mktemp("gemma")
    module = random_module(GEMMA2, GEMMA)
    with quiet():
        module.save_pretrained(folder / "source")
    graph = graph_from_module(GEMMA2, GEMMA)
    bound = bind_module(module, open_checkpoint(folder / "source", ("model",)))
    link_weights(graph, bound.linked, folder / "artifact", "")
    ir.save(graph, folder / "artifact/model.onnx")
    return module, ort.InferenceSession(str(folder / "artifact/model.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("batch", "tokens", "padded"), [(1, 1, 0), (1, 40, 0), (2, 30, 11), (3, 17, -9), (1, 12, 0)], ids=str
)
def test_every_token_sees_what_it_sees_in_transformers(
    gemma: tuple[Any, Any], batch: int, tokens: int, padded: int
) -> None:
    """padded: so many tokens of the first row, at its end; below 0, at its start. The window is 12 tokens wide."""
    module, session = gemma
    ids = np.random.default_rng(4).integers(0, GEMMA["vocab_size"], (batch, tokens))
    mask = np.ones_like(ids)
    if padded:
        mask[0, slice(tokens - padded, None) if padded > 0 else slice(0, -padded)] = 0
    with torch.no_grad():
        expected = module(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    np.testing.assert_allclose(found[mask == 1], expected.numpy()[mask == 1], atol=2e-5)


def test_gemma_sees_a_window_and_no_later_token(gemma: tuple[Any, Any]) -> None:
    """Or the test above would hold two graphs without masks to each other."""
    ids = np.random.default_rng(4).integers(0, GEMMA["vocab_size"], (1, 30))
    other = ids.copy()
    other[0, 20] = (other[0, 20] + 1) % GEMMA["vocab_size"]
    mask = np.ones_like(ids)
    (first,), (second,) = (gemma[1].run(None, {"input_ids": one, "attention_mask": mask}) for one in (ids, other))
    changed = np.abs(first - second).max(axis=2)[0] > 1e-6
    assert not changed[:20].any()
    assert changed[20:].all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"interpolation_scale": 2, "patch_size": 2, "out_channels": 8},  # positions, patches, learned variances
        {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},  # a Sprint model
    ],
    ids=["positions", "sprint"],
)
def test_the_variants_of_the_transformer_are_proved(proved: Any, more: dict[str, Any]) -> None:
    proved(TRANSFORMER, SANA | more)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [VAE_ENCODER, VAE_DECODER], ids=lambda s: s.name)
def test_an_autoencoder_that_folds_pixels_is_proved(proved: Any, spec: Any) -> None:
    proved(spec, FOLDING)


def test_what_keeps_a_division_from_being_by_zero_is_in_the_graph() -> None:
    """The optimizer takes 1e-15 for 0; without it a head whose queries are all 0 gives NaN."""
    from vitrify.export.graph import graph_from_module

    graph = graph_from_module(VAE_DECODER, FOLDING)
    values = [v.const_value for v in graph.graph.initializers.values() if v.const_value is not None]
    numbers = [float(v.numpy().item()) for v in values if v.size == 1 and v.dtype.is_floating_point()]
    assert any(0 < number < 1e-14 for number in numbers)
    added = [node for node in graph.graph if node.op_type == "Add" and node.inputs[1].const_value is not None]
    assert any(n.inputs[1].const_value.size == 1 and 0 < n.inputs[1].const_value.numpy().item() < 1e-14 for n in added)


@pytest.mark.parametrize(
    ("spec", "config", "size"),
    [
        pytest.param(GEMMA2, GEMMA_2B, 40e6, id="gemma-2-2b"),
        pytest.param(TRANSFORMER, SANA_1600M, 10e6, id="sana-1.6b"),
        pytest.param(TRANSFORMER, SANA_600M, 10e6, id="sana-0.6b"),
        pytest.param(VAE_DECODER, DC_AE, 30e6, id="dc-ae"),
    ],
)
def test_a_twin_is_narrow(spec: Any, config: dict[str, Any], size: float) -> None:
    from vitrify.export.graph import meta_module

    module = meta_module(spec, spec.narrow(config))
    assert sum(4 * p.numel() for p in module.parameters()) < size


def test_equal_sizes_stay_equal_in_a_twin() -> None:
    assert are_alike([70, 32, 2240], [6, 8, 48])
    assert not are_alike([70, 32, 2240], [6, 6, 36])
    assert not are_alike([32, 32, 1024], [6, 8, 48])


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1)], ids=str)
def test_queries_may_share_keys_and_values(heads: tuple[int, int]) -> None:
    """What attention is exported as, beside torch's own."""
    from torch.nn.functional import scaled_dot_product_attention as theirs

    from vitrify.export.graph import _plain_attention

    queries, shared = heads
    query = torch.randn(2, queries, 5, 4)
    key, value = torch.randn(2, 2, shared, 7, 4)
    expected = theirs(query, key, value, enable_gqa=True)
    with _plain_attention():
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(found, expected)


def test_the_page_about_families_quotes_what_stands_in_the_files() -> None:
    root = Path(__file__).parents[3]
    page = (root / "docs/adding-a-family.md").read_text(encoding="utf-8")
    quotes = re.findall(r"^```python (\S+)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(quotes) >= 6
    for path, code in quotes:
        # the page's formatter takes a method's indentation off
        text, quoted = (re.sub(r"\s+", " ", one) for one in ((root / path).read_text(encoding="utf-8"), code))
        assert quoted.strip().rstrip(",") in text, f"{path} no longer has:\n{code}"
