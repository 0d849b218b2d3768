"""Shards of the right size with wrong bytes: the run ends in one message, on all ranks."""

import shutil
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from data_tools.corpus.shards import PackedBlocks
from ds_train.phases import pack_check, pretrain
from ds_train.phases.pack_check import PackCheck
from ds_train.ranks.world import World
from tests.support import tiny
from tests.support.process_group import own_process_group


@pytest.fixture
def pack(tiny_scratch: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_scratch / "data" / "c4_packed", tmp_path / "pack")


def _exchange_tokens(shard: Path) -> None:
    """Other bytes, all of them ids of the vocabulary."""
    content = shard.read_bytes()
    shard.write_bytes(content[2:] + content[:2])


@pytest.mark.parametrize("is_damaged", [False, True])
def test_all_ranks_learn_what_rank_0_found(pack: Path, is_damaged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_damaged:
        _exchange_tokens(pack / "shard_00000.bin")
    checks = [PackCheck([PackedBlocks(pack)], World(rank, rank, 2)) for rank in range(2)]
    checks[0]._thread.join()
    of_main = []
    for check in checks:
        monkeypatch.setattr(pack_check, "sum_over_ranks", lambda found: of_main.append(found) or of_main[0])
        monkeypatch.setattr(pack_check, "broadcast_object", lambda _: checks[0]._problem)
        if is_damaged:
            with pytest.raises(UserError, match=r"shard_00000\.bin is damaged: SHA-256 .*--resume_from"):
                check.raise_if_damaged()
        else:
            for _ in range(3):  # after the first there is nothing to ask
                check.raise_if_damaged()
    assert [found.tolist() for found in of_main] == [[1, int(is_damaged)], [0, 0]]


def test_a_damaged_shard_ends_the_run(tiny_scratch: Path, tmp_path: Path, pack: Path) -> None:
    _exchange_tokens(pack / "shard_00000.bin")
    flags = "--global_batch 2 --micro_batch 2 --total_steps 400 --eval_every 400 --pptrain_checkpoint none"
    flags += f" --num_workers 0 --mixin_percent 0 --allow_repeat --run_name damaged --pack_dir {pack}"
    with own_process_group(), pytest.raises(UserError, match=r"shard_00000\.bin is damaged: SHA-256"):
        pretrain.main([*tiny.flags(tiny_scratch), *flags.split()])
    shutil.rmtree(tiny_scratch / "damaged")
