"""A model with ALiBi, whose documents would meet in one row: its losses depend on no layout either."""

import json
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.launching import read_log, run_all

STEPS = 8
PHASE_FLAGS = {
    "pptrain": f"--max_steps {STEPS}",
    "pretrain": f"--total_steps {STEPS} --mixin_percent 0.3 --pptrain_checkpoint none",
}
LAYOUTS = [(1, 8, 1), (1, 1, 1), (1, 4, 3), (2, 2, 3)]  # ranks, micro batch, ZeRO stage
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def scratch(tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both phases in every layout."""
    config = {
        "model_type": "falcon", "alibi": True, "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "attention_dropout": 0.0, "hidden_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    (tiny_scratch / "falcon").mkdir()
    (tiny_scratch / "falcon" / "config.json").write_text(json.dumps(config))
    output = ""
    for ranks in (1, 2):
        runs = []
        for phase in PHASE_FLAGS:
            for layout in [layout for layout in LAYOUTS if layout[0] == ranks]:
                flags = tiny.flags(tiny_scratch)
                flags[flags.index("--model_name") + 1] = str(tiny_scratch / "falcon")
                runs.append({"phase": phase, "argv": [*flags, *arguments(phase, *layout)]})
        output += run_all(runs, tmp_path_factory.mktemp("runs"), ranks)
    assert output.count("one a row, padded") == len(LAYOUTS) * len(PHASE_FLAGS)
    return tiny_scratch


def arguments(phase: str, ranks: int, micro_batch: int, zero: int) -> list[str]:
    return [
        *PHASE_FLAGS[phase].split(), "--run_name", name_of(phase, ranks, micro_batch, zero), "--mixed_precision", "no",
        "--lr", "2e-3", "--global_batch", "8", "--micro_batch", str(micro_batch), "--zero_stage", str(zero),
    ]  # fmt: skip


def name_of(phase: str, *layout: int) -> str:
    return "_".join(["falcon", phase, *map(str, layout)])


@pytest.mark.launch
@pytest.mark.parametrize("phase", PHASE_FLAGS)
@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_losses_do_not_depend_on_the_layout(scratch: Path, phase: str, layout: tuple[int, int, int]) -> None:
    rows, reference = (read_log(scratch / name_of(phase, *each)) for each in (layout, LAYOUTS[0]))
    assert len(rows) == STEPS and [row["ledger"] for row in rows] == [row["ledger"] for row in reference]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in reference], abs=TOLERANCE)
    evaluations, expected = (read_log(scratch / name_of(phase, *each), "eval") for each in (layout, LAYOUTS[0]))
    assert [row["heldout_loss"] for row in evaluations] == pytest.approx(
        [r["heldout_loss"] for r in expected], abs=1e-5
    )
    assert [row["heldout_acc"] for row in evaluations] == [row["heldout_acc"] for row in expected]
