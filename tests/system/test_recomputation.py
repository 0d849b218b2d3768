"""Runs with activation checkpointing are the runs without it, to the last bit: losses, gradients, weights."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_train.checkpoints.weights import checkpoint_weights
from ds_train.config.deepspeed_json import default_json
from tests.support import tiny
from tests.support.launching import read_log, run_all
from tests.support.selection import selected, slow

STEPS = 4
TIMES = {"timestamp", "gpu_hours", "tokens_per_second", "data_wait_fraction", "peak_memory_gb"}
# Weights are cut into small parts, and none stays for longer than its layer needs it.
CUT = {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0, "stage3_prefetch_bucket_size": 0}


@dataclass(frozen=True)
class Case:
    """A run."""

    zero: int
    precision: str = "no"
    every: int = 1
    ranks: int = 2
    model: str = "model"
    flags: str = ""

    @property
    def without(self) -> "Case":
        return replace(self, every=0)

    @property
    def name(self) -> str:
        return f"{self.model}_zero{self.zero}_{self.precision}_every{self.every}_{self.ranks}ranks"


TIED_IN_OWN_ROWS = {"model": "tied", "flags": "--mixin_pack single --attn_implementation eager --keep_dropout"}
CASES = [
    Case(1), Case(1, "bf16"), Case(3), Case(3, every=2), Case(3, **TIED_IN_OWN_ROWS),
    *slow(Case(0), Case(2), Case(3, "bf16"), Case(1, **TIED_IN_OWN_ROWS), Case(0, ranks=1), Case(3, ranks=1)),
]  # fmt: skip


def _run(case: Case, scratch: Path) -> dict[str, Any]:
    config = json.loads(default_json("pretrain").read_text())
    config["zero_optimization"] = {"stage": case.zero, "reduce_bucket_size": 20_000, **(CUT if case.zero == 3 else {})}
    argv = [
        *tiny.flags(scratch, case.precision), "--run_name", case.name, "--total_steps", str(STEPS),
        *"--pptrain_checkpoint none --mixin_percent 0.3 --eval_every 2 --global_batch 8 --micro_batch 1".split(),
        *"--lr 2e-3 --num_workers 0".split(), *case.flags.split(), "--deepspeed_config", json.dumps(config),
        "--activation_checkpointing", str(case.every),
    ]  # fmt: skip
    argv[argv.index("--model_name") + 1] = str(scratch / case.model)
    return {"phase": "pretrain", "argv": argv}


@pytest.fixture(scope="module")
def scratch(request: pytest.FixtureRequest, tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of the selected cases, trained: one launch a number of ranks."""
    tiny.write_tied_model(tiny_scratch / "tied")
    for ranks in (1, 2):
        cases = [case for case in selected(request, "case") if case.ranks == ranks]
        if not cases:
            continue
        runs = [_run(case, tiny_scratch) for case in {*cases, *(case.without for case in cases)}]
        output = run_all(runs, tmp_path_factory.mktemp("runs"), ranks)
        for count, num_layers in ((1, 2), (2, 1)):  # every second one is one of the two
            assert output.count(f"activations of {num_layers} of 2 layers") == sum(
                case.every == count for case in cases
            )
    return tiny_scratch


@pytest.mark.launch
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_bits_at_every_step_and_at_the_end(scratch: Path, case: Case) -> None:
    without, recomputed = (scratch / each.name for each in (case.without, case))
    for log in ("train", "eval"):
        rows, expected = (
            [{name: row[name] for name in row.keys() - TIMES} for row in read_log(run, log)]
            for run in (recomputed, without)
        )
        assert rows == expected and len(rows) >= 3, log
    settings = json.loads((recomputed / "deepspeed.json").read_text())
    assert settings["activation_checkpointing"] == {"every": case.every}
    weights, others = (checkpoint_weights(run / f"checkpoints/step_{STEPS:08d}") for run in (recomputed, without))
    assert weights.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
