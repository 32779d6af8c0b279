"""Single checkpoints of SDXL, SD3 and Flux, tiny: what is copied, and that they compute what they were made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.core.errors import BadInput
from vitrify.core.safetensors_header import read_header
from vitrify.export.job import ExportJob, export_model, find_source

torch = pytest.importorskip("torch", reason="needs the extra export")

Made = tuple[Any, Path, Path]


pytestmark = pytest.mark.slow  # traces many graphs: minutes on an empty cache


@pytest.fixture(scope="module")
def exported(other: Callable[[str], Made], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def export(kind: str) -> Any:
        if kind not in made:
            _, folder, file = other(kind)
            target = tmp_path_factory.mktemp("exported") / "artifact"
            made[kind] = ExportJob(find_source(str(file), config=str(folder)), target, verify=True).run()
        return made[kind]

    return export


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_it_is_proved_against_diffusers_own_loader(exported: Callable[[str], Any], kind: str) -> None:
    artifact = exported(kind).artifact
    assert max(c.proof["numeric"]["relative"] for c in artifact.components.values()) <= 1e-5
    assert artifact.proof["images"]["pictures"] == 2


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_it_draws_what_the_model_draws_that_it_was_made_of(
    other: Callable[[str], Made], exported: Callable[[str], Any], kind: str
) -> None:
    prompt, size = "a red apple", {"width": 32, "height": 32}
    expected = other(kind)[0](
        prompt, num_inference_steps=3, guidance_scale=4.0, output_type="np", generator=torch.Generator().manual_seed(3),
        **size,
    ).images[0]  # fmt: skip
    drawn = vitrify.load(exported(kind).artifact, "cpu")
    result = drawn.generate(prompt, steps=3, guidance=4.0, seed=3, **size)
    drawn.close()
    assert np.abs(np.asarray(result.images[0], float) - expected * 255).max() <= 1
    assert expected.std() > 0.01, "a picture of one colour proves nothing"


COPIED = {
    "sdxl": {"text_encoder_2": {"text_projection.weight"}},
    "sd3": {
        "text_encoder": {"text_projection.weight"},
        "transformer": {f"{layer}.linear.{leaf}" for layer in ("norm_out", "transformer_blocks.1.norm1_context")
                        for leaf in ("weight", "bias")},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_only_what_is_no_run_of_bytes_is_copied(
    other: Callable[[str], Made], exported: Callable[[str], Any], kind: str
) -> None:
    done, file = exported(kind), other(kind)[2]
    for component in done.artifact.components.values():
        names = {Path(w.path).name for w in component.weights}
        copied = COPIED[kind].get(component.name)
        assert names == {file.name, *(["rearranged.safetensors"] if copied else [])}
        assert (component.graph_path.parent / file.name).stat().st_ino == file.stat().st_ino
        if copied:
            assert set(read_header(component.graph_path.parent / "rearranged.safetensors")) == copied
    notes = "\n".join(done.notes)
    if kind == "sdxl":
        assert "text_encoder_2: 1 of" in notes
        assert "tensors are copied: 1 (stored transposed)" in notes
    else:
        assert "text_encoder: 1 of" in notes
        assert "1 (not in the file: the identity)" in notes
        assert "4 (its halves change places)" in notes
        assert "text_encoder_3 (T5EncoderModel) is neither in the file nor in" in notes


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_the_folder_gives_the_same_weights(
    other: Callable[[str], Made], exported: Callable[[str], Any], tmp_path: Path, kind: str
) -> None:
    plain = export_model(other(kind)[1], tmp_path / "plain", verify=False)
    single = exported(kind).artifact
    assert plain.pipeline == single.pipeline
    for name, component in plain.components.items():
        assert component.proof["weights"]["sha256"] == single.components[name].proof["weights"]["sha256"], name


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_flux_transformer_alone(flux: Made, layouts: Any, tmp_path: Path, prefix: str) -> None:
    from safetensors.torch import load_file

    _, folder, file = flux
    path = layouts.save(layouts.prefixed(prefix, load_file(file)), tmp_path / "flux.safetensors")
    done = ExportJob(find_source(str(path), config=str(folder)), tmp_path / "out", verify=False).run()
    plain = export_model(folder, tmp_path / "plain", verify=False)
    for name, component in done.artifact.components.items():
        assert component.proof["weights"]["sha256"] == plain.components[name].proof["weights"]["sha256"], name
    copied = set(read_header(tmp_path / "out/transformer/rearranged.safetensors"))
    assert copied == {"norm_out.linear.weight", "norm_out.linear.bias"}
    assert any("transformer: 2 of" in note for note in done.notes)


def test_t5s_vocabulary_is_asked_for(flux: Made, layouts: Any, tmp_path: Path) -> None:
    """A file has no tokenizer, and CLIP's alone is built in."""
    import json
    import shutil

    _, folder, file = flux
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer_2"))
    assert "T5TokenizerFast" in json.dumps(json.loads((bare / "model_index.json").read_text()))
    with pytest.raises(BadInput, match="its tokenizer_2 is T5's, whose vocabulary no checkpoint holds"):
        find_source(str(file), config=str(bare))


def test_without_its_other_parts_a_flux_is_told_what_it_lacks(flux: Made) -> None:
    with pytest.raises(BadInput, match=r"is a Flux checkpoint without its vae \(AutoencoderKL; looked for") as caught:
        find_source(str(flux[2]))
    assert "--config FOLDER" in caught.value.fix
