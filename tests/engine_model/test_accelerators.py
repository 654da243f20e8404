from __future__ import annotations

import pytest

from aibrix_ray.engine_model import accelerator_names, accelerator_profile, attention_work
from aibrix_ray.errors import ConfigError


def test_every_name_of_the_catalogue_has_its_profile() -> None:
    assert {accelerator_profile(name).name for name in accelerator_names()} == set(
        accelerator_names()
    )
    assert {"L4", "A10", "A10G", "A30", "V100", "L20", "A40", "A100", "H100", "cpu"} < set(
        accelerator_names()
    )


@pytest.mark.parametrize("name", ["A100", "a100"])
def test_capitals_do_not_matter(name: str) -> None:
    assert accelerator_profile(name).name == "A100"


@pytest.mark.parametrize("name", ["A1000", "", "h 100"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        accelerator_profile(name, path="engine.profile")
    assert caught.value.path == "engine.profile"
    assert all(known in caught.value.expected for known in accelerator_names())


def test_a_near_miss_is_told() -> None:
    with pytest.raises(ConfigError, match="did you mean 'A100'"):
        accelerator_profile("A1000")


def test_only_measured_profiles_call_themselves_fitted() -> None:
    fitted = {name for name in accelerator_names() if accelerator_profile(name).fitted}
    assert fitted == {"A40", "A100", "H100"}


def test_the_cpu_profile_is_like_vllm_on_this_cpu() -> None:
    # ray_serve.md §6 and §7: 3.7 ms a token alone, 6 to 10 ms to the first one, 74 ms for a cold
    # prompt of 400 tokens, 5.2 ms a step at 16 sequences.
    model = accelerator_profile("cpu").coefficients
    assert model.step_s(1) * 1000 == pytest.approx(3.7, abs=0.1)
    assert 5.5 <= model.step_s(32, attention=attention_work(32, 0)) * 1000 <= 10
    assert model.step_s(400, attention=attention_work(400, 0)) * 1000 == pytest.approx(74, rel=0.1)
    sixteen = model.step_s(16, kv_tokens=16 * 40, sequences=16)
    assert sixteen * 1000 == pytest.approx(5.2, rel=0.15)


def test_an_instant_step_is_the_same_whatever_it_holds() -> None:
    model = accelerator_profile("instant").coefficients
    full_s = model.step_s(2048, attention=1e6, kv_tokens=100_000, sequences=64)
    assert full_s == pytest.approx(0.00005)
    assert model.step_s(1) == pytest.approx(full_s)
