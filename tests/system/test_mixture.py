"""A mixture is the same in any layout, and after a resume."""

from pathlib import Path

import pytest

from data_tools import build_pretrain
from tests.support import tiny
from tests.support.comparing import comparable
from tests.support.launching import read_log, run_all

STEPS = 8
MIXTURES = {
    "perseq": "--mixin_loss perseq --mixin_schedule exponential --mixin_end 0.2",
    "fresh": "--mixin_source generator",
    "packs": "--packs c4=0.75 code=0.25 --c4_order seed --c4_documents masked",
}


def _arguments(scratch: Path, mixture: str, name: str, *more: str) -> list[str]:
    flags = f"--total_steps {STEPS} --mixin_percent 0.8 --eval_every {STEPS} --pptrain_checkpoint none --lr 2e-3"
    return [
        *tiny.flags(scratch), *flags.split(), *MIXTURES[mixture].split(), "--global_batch", "8",
        "--run_name", f"{mixture}_{name}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def scratch(tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixtures, each trained in several layouts: one launch a number of ranks."""
    layouts = {
        1: [("straight", "2", ()), ("micro", "1", ()), ("resumed", "2", ("--stop_step", "3")), ("resumed", "2", ())],
        2: [("ranks", "1", ())],
    }
    build_pretrain.main(
        f"--scratch_dir {tiny_scratch} --name code --source {tiny_scratch / 'documents.jsonl'} --tokenizer "
        f"{tiny_scratch / 'tokenizer'} --seq_len {tiny.SEQ_LEN} --num_blocks 40 --val_blocks 2 --workers 1".split()
    )
    for ranks, of_ranks in layouts.items():
        runs = [
            {"phase": "pretrain", "argv": _arguments(tiny_scratch, mixture, name, "--micro_batch", micro_batch, *more),
             **({"code": 86} if more else {})}
            for mixture in MIXTURES
            for name, micro_batch, more in of_ranks
        ]  # fmt: skip
        run_all(runs, tmp_path_factory.mktemp("runs"), ranks)
    return tiny_scratch


@pytest.mark.launch
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("name", ["micro", "ranks"])
def test_no_layout_changes_it(scratch: Path, mixture: str, name: str) -> None:
    rows, expected = (read_log(scratch / f"{mixture}_{n}") for n in (name, "straight"))
    assert len(rows) == STEPS and any(row["c4_count"] and row["mixin_count"] for row in rows)
    for column in ("ledger", "tokens", "mixin_count"):
        assert [row[column] for row in rows] == [row[column] for row in expected]
    for column in ("loss", "mixin_loss"):
        assert [row[column] for row in rows] == pytest.approx([row[column] for row in expected], abs=2e-6)


@pytest.mark.launch
@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_resume_continues_it(scratch: Path, mixture: str) -> None:
    straight, resumed = (read_log(scratch / f"{mixture}_{n}") for n in ("straight", "resumed"))
    assert comparable(resumed) == comparable(straight)


@pytest.mark.launch
def test_tokens_and_held_out_losses_are_counted_by_pack(scratch: Path) -> None:
    rows = read_log(scratch / "packs_straight")
    blocks = 0
    for row in rows:
        blocks += row["c4_count"]
        assert row["c4_tokens"] + row["code_tokens"] == blocks * tiny.SEQ_LEN
        assert abs(row["code_tokens"] - 0.25 * blocks * tiny.SEQ_LEN) < tiny.SEQ_LEN
        assert row["tokens"] * (1 - row["mixin_fraction"]) == pytest.approx(blocks * tiny.SEQ_LEN)
    for row in read_log(scratch / "packs_straight", "eval"):
        assert 0 < row["heldout_c4_loss"] < 10 and 0 < row["heldout_code_loss"] < 10
    assert "c4_tokens" not in read_log(scratch / "fresh_straight")[0]
