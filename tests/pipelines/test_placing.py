"""Which component runs on which device, as users say it."""

from __future__ import annotations

import pytest

from vitrify.core.device import Device
from vitrify.core.errors import UsageError
from vitrify.pipelines.placing import fitting, parse_place, placed

SD = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
FLUX = ["text_encoder", "text_encoder_2", "transformer", "vae_decoder"]


def test_a_text_names_components_and_devices() -> None:
    assert parse_place(" vae=cpu , unet = cuda:0 ") == {"vae": "cpu", "unet": "cuda:0"}
    assert parse_place("") == {}


@pytest.mark.parametrize(
    ("text", "said"), [("vae", "places nothing"), ("=cpu", "places nothing"), ("a=cpu,a=npu", "a is placed twice")]
)
def test_a_text_that_places_nothing(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_place(text)


def test_names_stand_for_components() -> None:
    cpu, gpu = Device("cpu"), Device("cuda", 0)
    assert placed({"vae": "cpu", "unet": "cuda:0"}, SD) == {"vae_decoder": cpu, "vae_encoder": cpu, "unet": gpu}
    assert placed({"text_encoders": "cpu", "denoiser": "cuda:0"}, FLUX) == {
        "text_encoder": cpu,
        "text_encoder_2": cpu,
        "transformer": gpu,
    }
    # a component's own name wins, wherever it stands
    for place in ({"vae": "cpu", "vae_decoder": "cuda:0"}, {"vae_decoder": "cuda:0", "vae": "cpu"}):
        assert placed(place, SD) == {"vae_encoder": cpu, "vae_decoder": gpu}


def test_a_name_without_a_component_is_told() -> None:
    with pytest.raises(UsageError, match=r"no component 'transformer'.*text_encoder, unet, vae_decoder"):
        placed({"transformer": "cpu"}, SD)
    with pytest.raises(UsageError, match="'gpus' is not a device"):
        placed({"unet": "gpus"}, SD)


def test_of_several_models_each_takes_its_part() -> None:
    place = {"vae": "cpu", "transformer": "cuda:0", "model": "npu"}
    assert fitting(place, SD) == {"vae": "cpu"}
    assert fitting(place, ["model"]) == {"model": "npu"}
