"""Every class of transformers' causal LMs is trained exactly or refused in one line; nothing else happens."""

from collections.abc import Iterator

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.support.every_model import (
    FAILED,
    PACKED,
    PADDED,
    REFUSED,
    not_checkpointable,
    outcome,
    outcomes,
    small_configuration,
    table,
)
from tests.support.paths import REPOSITORY
from tests.support.process_group import one_rank

SAMPLE = {
    "qwen3": (PACKED, "packed"),
    "gemma2": (PACKED, "eager"),
    "gemma3": (PACKED, "sdpa"),  # with images: its text part
    "deepseek_v3": (PACKED, "packed"),  # query and value heads of different sizes
    "mpt": (PADDED, "eager"),
    "rwkv": (PADDED, "eager"),
    "lfm2": (PADDED, "sdpa"),
    "roberta": (REFUSED, "not causal"),
    "bart": (REFUSED, "is an encoder-decoder"),
    "mllama": (REFUSED, "no causal language model of type mllama_text_model"),
    "blt": (REFUSED, "cannot run on text"),
    "reformer": (REFUSED, "cannot be built"),
    "xlnet": (REFUSED, "not causal"),
}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    threads = torch.get_num_threads()
    with one_rank():
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_sample_of_each_outcome(model_type: str) -> None:
    what, why = SAMPLE[model_type]
    found, reason = outcome(small_configuration(CONFIG_MAPPING[model_type], model_type))
    assert found == what and why in reason and "\n" not in reason


@pytest.mark.slow
def test_every_class_has_one_of_three_outcomes_and_the_page_shows_them() -> None:
    found = outcomes()
    assert {name: why for name, (what, why) in found.items() if what == FAILED or "\n" in why} == {}
    page = (REPOSITORY / "ds_train" / "README.md").read_text()
    assert table(found) in page
    refused = sorted(not_checkpointable(name for name, (what, _) in found.items() if what in (PACKED, PADDED)))
    assert f"{', '.join(refused[:-1])} and {refused[-1]} are refused" in " ".join(page.split())
