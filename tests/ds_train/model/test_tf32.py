"""--tf32: where products are rounded, and where not."""

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel

from data_tools.base.errors import Problems, UserError
from ds_train.config.trainer_flags import OverrideFlags, RunFlags
from ds_train.model.causal_lm import build_model
from ds_train.model.tf32 import use_tf32
from ds_train.ranks.world import World
from ds_train.run.inputs import check_run
from tests.support.tiny_models import tiny_config


@pytest.fixture(autouse=True)
def _same_arithmetic_for_every_test() -> Iterator[None]:
    allowed = torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_all_products_but_those_of_rotary_positions(architecture: str) -> None:
    model = build_model(tiny_config(architecture), seed=1)
    use_tf32(model)
    seen = _precisions(model)
    assert seen.pop("RotaryEmbedding") == {"highest"}
    assert seen and all(precision == {"high"} for precision in seen.values())


def _precisions(model: PreTrainedModel) -> dict[str, set[str]]:
    """The precisions in which modules of each kind run, as torch names them."""
    seen: dict[str, set[str]] = {}
    for module in model.modules():
        kind = type(module).__name__
        kind = "RotaryEmbedding" if kind.endswith("RotaryEmbedding") else kind
        if kind in ("RotaryEmbedding", "Linear"):
            forward, found = module.forward, seen.setdefault(kind, set())

            def spying(*args, forward=forward, found=found, **kwargs):
                found.add(torch.get_float32_matmul_precision())
                return forward(*args, **kwargs)

            module.forward = spying
    model(input_ids=torch.ones(1, 4, dtype=torch.long))
    return seen


@pytest.mark.parametrize(("precision", "is_refused"), [("no", False), ("bf16", True)])
def test_it_is_for_fp32(precision: str, is_refused: bool, tmp_path) -> None:
    problems = Problems()
    run, overrides = RunFlags(scratch_dir=str(tmp_path), tf32=True), OverrideFlags(mixed_precision=precision)
    check_run("pptrain", run, overrides, problems, world=World(0, 0, 1), total_steps=None)
    assert len(problems) == is_refused
    if is_refused:
        with pytest.raises(UserError, match="--tf32 is for fp32, but the precision is bf16"):
            problems.raise_if_any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_rounds_products() -> None:
    one, other = (torch.randn(256, 256, device="cuda") for _ in range(2))
    exact = one.double() @ other.double()
    errors = [((one @ other) - exact).norm() / exact.norm()]
    use_tf32(torch.nn.Linear(2, 2))
    errors.append(((one @ other) - exact).norm() / exact.norm())
    assert errors[0] < 1e-6 < 1e-4 < errors[1] < 1e-2
