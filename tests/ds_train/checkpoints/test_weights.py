"""What is recorded of the weights that a run starts from."""

from pathlib import Path

import pytest

from ds_train.checkpoints.state import InitialWeights
from ds_train.checkpoints.weights import Weights, place_of, record_of
from tests.support.checkpoints import write_checkpoint


def test_a_model_is_known_by_its_content_wherever_it_is(tmp_path: Path) -> None:
    records = []
    for name, content in (("one", b"w"), ("copy", b"w"), ("other", b"v")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        records.append(record_of(Weights(tmp_path / name, False)))
    one, copy, other = records
    assert one.is_same(copy) and one.path != copy.path and not one.is_same(other)
    assert not one.is_same(InitialWeights()) and InitialWeights().is_same(InitialWeights())


def test_models_of_a_hub_without_a_commit_are_known_by_their_names() -> None:
    assert not InitialWeights("one/model").is_same(InitialWeights("other/model"))
    assert InitialWeights("one/model").is_same(InitialWeights("one/model"))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("none", ""), ("latest", "run/checkpoints/step_00000200"), ("{}/run", "run/checkpoints/step_00000200"),
        ("{}/run/checkpoints/step_00000100", "run/checkpoints/step_00000100"), ("{}/pruned", "pruned"),
    ],
)  # fmt: skip
def test_the_place_of_a_flag_need_not_exist(tmp_path: Path, spec: str, expected: str) -> None:
    (tmp_path / "run").mkdir()
    for step in (100, 200):
        (tmp_path / "run" / "checkpoints").mkdir(exist_ok=True)
        write_checkpoint(tmp_path / "run" / "checkpoints", step)
    assert place_of(spec.format(tmp_path), tmp_path / "run") == (expected and str(tmp_path / expected))
