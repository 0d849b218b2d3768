"""What all ranks of a fresh start agree on, and what refuses a start before they meet."""

from pathlib import Path
from typing import Any

import pytest

from data_tools.base.errors import UserError
from ds_train.checkpoints.manifest import damage_in
from ds_train.checkpoints.save import read_state
from ds_train.checkpoints.weights import Weights
from ds_train.phases import pretrain
from ds_train.run import start
from tests.support import tiny
from tests.support.flash_stand_in import install
from tests.support.process_group import own_process_group


def train(scratch: Path, *more: str) -> None:
    flags = "--global_batch 4 --micro_batch 4 --num_workers 0 --total_steps 2 --save_every 1 --keep_last 0"
    given = [*tiny.flags(scratch), *flags.split(), *more]
    if "none" not in more:  # weights determine the architecture
        at = given.index("--model_name")
        del given[at : at + 2]
    with own_process_group():
        assert pretrain.main(given) == 0


def test_all_ranks_start_from_the_weights_that_rank_0_has_found(
    tiny_scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 looked when the run to start from had saved its first step; this rank when it had saved the second."""
    train(tiny_scratch, "--pptrain_checkpoint", "none", "--run_name", "agreed_source")
    first, second = (tiny_scratch / "agreed_source" / "checkpoints" / f"step_0000000{step}" for step in (1, 2))

    def with_all_ranks(world: Any, decide: Any) -> Any:
        found = decide(damage_in)
        return Weights(first, True) if found == Weights(second, True) else found

    monkeypatch.setattr(start, "with_all_ranks", with_all_ranks)
    train(tiny_scratch, "--pptrain_run", "agreed_source", "--run_name", "agreed")
    origin = read_state(tiny_scratch / "agreed" / "checkpoints" / "step_00000002").initial_weights
    assert origin and origin.path == str(first)


def test_flash_attention_is_refused_on_a_cpu(tiny_scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By each rank, before anything is built."""
    install(monkeypatch, "flash_attention_2")
    flags = "--pptrain_checkpoint none --mixed_precision bf16 --attn_implementation flash_attention_2 --run_name flash"
    with pytest.raises(UserError, match="flash_attention_2: it needs a GPU, and this rank trains on a CPU"):
        train(tiny_scratch, *flags.split())
    assert not (tiny_scratch / "flash").exists()
