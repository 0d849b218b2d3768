"""What a run of pretrain transfers and freezes is so at every ZeRO stage, on 1 and 2 ranks, and stays so."""

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_train.checkpoints.weights import checkpoint_weights
from ds_train.model.causal_lm import build_model
from tests.support import tiny
from tests.support.launching import read_log, run_all
from tests.support.selection import selected, slow
from tests.support.tiny_models import ARCHITECTURES, tiny_config

pytestmark = pytest.mark.launch

SEED = 1337
COPIED = r"\.attention\.|\.self_attn\.|\.attn\.|norm|\.ln_"
FROZEN = r"norm|\.ln_|\.mlp\.|embed_in|embed_tokens|wte|wpe"
LAYOUTS = [(2, 0), (1, 1), (2, 2), (2, 3), *slow((1, 0), (2, 1), (1, 2), (1, 3))]  # ranks, ZeRO stage
STEPS, STOPS = 6, (2, 4, 6)  # of a run that is stopped and continued twice
FLAGS = f"""--total_steps {STEPS} --eval_every 100 --mixin_percent 0.3 --global_batch 8 --micro_batch 4 --keep_last 0
    --lr 2e-3 --weight_decay 0.5 --transfer attention norms --freeze norms mlp embeddings
    --no_decay norms biases"""
LOSS_TOLERANCE = {"no": 1e-5, "bf16": 2e-3}  # the rate is high from the first step on


@dataclass(frozen=True)
class Chain:
    """A run that continues in other layouts: (ranks, ZeRO stage) up to each of `STOPS`."""

    architecture: str
    precision: str
    layouts: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        layouts = "_".join(f"{ranks}ranks_zero{zero}" for ranks, zero in self.layouts)
        return f"{self.architecture}_{self.precision}_{layouts}"

    @property
    def straight(self) -> "Chain":
        return replace(self, layouts=((1, 1),))


CHAINS = [
    Chain("gpt_neox", "no", ((1, 0), (2, 3), (1, 1))),
    Chain("gpt2", "no", ((2, 1), (1, 2), (2, 3))),
    Chain("llama", "bf16", ((2, 3), (1, 2), (1, 1))),
    *slow(
        Chain("llama", "no", ((2, 3), (1, 3), (2, 0))),
        Chain("gpt2", "bf16", ((2, 1), (1, 1), (2, 3))),
    ),
]


def _source(architecture: str) -> Any:
    model = build_model(tiny_config(architecture, positions=tiny.SEQ_LEN), seed=1)
    for parameter in model.parameters():
        parameter.data += 0.01  # norms and biases are equal in all fresh models
    return model


def _run(scratch: Path, name: str, architecture: str, zero: int, *more: str, precision: str = "no") -> dict[str, Any]:
    flags = tiny.flags(scratch, precision)
    del flags[flags.index("--model_name") : flags.index("--model_name") + 2]
    argv = [
        *flags, *FLAGS.split(), "--pptrain_checkpoint", str(scratch / f"source_{architecture}"), "--run_name", name,
        "--zero_stage", str(zero), *more,
    ]  # fmt: skip
    return {"phase": "pretrain", "argv": argv}


@pytest.fixture(scope="module")
def scratch(request: pytest.FixtureRequest, tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All selected runs, in as few launches as can be."""
    directory = tmp_path_factory.mktemp("transfer")
    for architecture in ARCHITECTURES:
        _source(architecture).save_pretrained(tiny_scratch / f"source_{architecture}")
    layouts, chains = selected(request, "layout"), selected(request, "chain")
    chains += dict.fromkeys(chain.straight for chain in chains)
    for number, stop in enumerate(STOPS):
        runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        for chain in chains:
            for ranks, zero in chain.layouts[number : number + 1]:
                is_last = number == len(chain.layouts) - 1
                more = [] if is_last else ["--stop_step", str(stop)]
                run = _run(tiny_scratch, chain.name, chain.architecture, zero, *more, precision=chain.precision)
                runs[ranks].append(run | {"code": 0 if is_last else 86})
        for architecture, (ranks, zero) in itertools.product(ARCHITECTURES, layouts if number == 0 else []):
            name = f"{architecture}_{ranks}_{zero}"
            run = _run(tiny_scratch, name, architecture, zero)
            runs[ranks].append(run | {"starts_only": True, "tensors": str(tiny_scratch / f"{name}.pt")})
        for ranks, of_size in runs.items():
            if of_size:
                run_all(of_size, directory, ranks)
    return tiny_scratch


def _expected(architecture: str) -> dict[str, torch.Tensor]:
    """The tensors that a run starts with."""
    fresh = build_model(tiny_config(architecture, positions=tiny.SEQ_LEN), seed=SEED)
    copied = dict(_source(architecture).named_parameters())
    return {name: copied[name] if re.search(COPIED, name) else value for name, value in fresh.named_parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[0]}ranks_zero{layout[1]}")
def test_a_run_starts_with_the_transferred_and_the_fresh_tensors(
    architecture: str, layout: tuple[int, int], scratch: Path
) -> None:
    found = torch.load(scratch / f"{architecture}_{layout[0]}_{layout[1]}.pt")
    expected = _expected(architecture)
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.name)
def test_frozen_tensors_stay_and_others_are_trained_in_any_layout(chain: Chain, scratch: Path) -> None:
    """Weight decay, which is high here, does not reach them either."""
    start = _expected(chain.architecture)
    for stop in STOPS:
        weights = checkpoint_weights(scratch / chain.name / "checkpoints" / f"step_{stop:08d}")
        for name, value in start.items():
            is_frozen = bool(re.search(FROZEN, name))
            as_held = value.bfloat16() if is_frozen and chain.precision == "bf16" else value
            assert torch.equal(weights[name].float(), as_held.float()) == is_frozen, (stop, name)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.name)
def test_losses_do_not_depend_on_the_layout(chain: Chain, scratch: Path) -> None:
    rows = read_log(scratch / chain.name)
    straight = read_log(scratch / chain.straight.name)
    assert [row["ledger"] for row in rows] == [row["ledger"] for row in straight] and len(rows) == STEPS
    differences = [abs(row["loss"] - other["loss"]) for row, other in zip(rows, straight, strict=True)]
    assert max(differences) <= LOSS_TOLERANCE[chain.precision]
