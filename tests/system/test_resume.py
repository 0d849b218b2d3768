"""At an unchanged layout, resume is bitwise equal to never having stopped."""

from pathlib import Path

import pytest
import torch

from tests.support import tiny
from tests.support.launching import read_log, run_all

STEPS = 12
# Promotions fall on different steps; 5 is in the middle of a stage, 6 has the rule applied.
STOPS = {"pptrain": (1, 5, 6, 11), "pretrain": (5, 11)}
PRECISION = {"pptrain": "no", "pretrain": "bf16"}  # which does not depend on the phase
FLAGS = {
    "pptrain": f"--max_steps {STEPS} --curr_window 16 --curr_threshold 0.4 --curr_check_every 2",
    "pretrain": f"--total_steps {STEPS} --mixin_percent 0.3 --eval_every 4 --pptrain_checkpoint none",
}
TIMING = {"timestamp", "tokens_per_second", "data_wait_fraction", "peak_memory_gb"}


def _arguments(scratch: Path, phase: str, ranks: int, name: str, *more: str) -> list[str]:
    return [
        *tiny.flags(scratch), *FLAGS[phase].split(), "--lr", "2e-3", "--global_batch", "8", "--micro_batch", "2",
        "--num_workers", "2", "--keep_last", "0", "--mixed_precision", PRECISION[phase],
        "--run_name", f"resume_{phase}_{ranks}_{name}", *more,
    ]  # fmt: skip


def _comparable(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def _tensors(value: object, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a nested checkpoint value, by path."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {k: v for key, item in items for k, v in _tensors(item, f"{path}/{key}").items()}


@pytest.mark.launch
@pytest.mark.parametrize("ranks", [1, 2])
def test_stopped_and_resumed_equals_uninterrupted(tiny_scratch: Path, tmp_path: Path, ranks: int) -> None:
    runs = []
    for phase in FLAGS:
        runs.append({"phase": phase, "argv": _arguments(tiny_scratch, phase, ranks, "straight")})
        for stop in STOPS[phase]:
            stopped = _arguments(tiny_scratch, phase, ranks, f"stop{stop}", "--stop_step", str(stop))
            runs.append({"phase": phase, "argv": stopped, "code": 86})
            runs.append({"phase": phase, "argv": stopped[:-2]})
    run_all(runs, tmp_path, ranks)
    for phase in FLAGS:
        straight = tiny_scratch / f"resume_{phase}_{ranks}_straight"
        for stop in STOPS[phase]:
            resumed = tiny_scratch / f"resume_{phase}_{ranks}_stop{stop}"
            for log in ("train", "eval"):
                assert _comparable(read_log(resumed, log)) == _comparable(read_log(straight, log))
            _assert_same_checkpoint(resumed, straight)


def _assert_same_checkpoint(run: Path, other: Path, step: int = STEPS) -> None:
    names = {path.name for path in (other / "checkpoints" / f"step_{step:08d}").glob("*.pt")}
    seen: set[str] = set()
    for name in names:
        loaded = [
            torch.load(r / "checkpoints" / f"step_{step:08d}" / name, weights_only=False, map_location="cpu")
            for r in (run, other)
        ]
        ours, theirs = map(_tensors, loaded)
        assert ours.keys() == theirs.keys()
        seen |= ours.keys()
        assert [path for path in ours if not torch.equal(ours[path], theirs[path])] == []
        states = [value.get("ds_train") for value in loaded]
        if states[0]:
            plain = [{key: value for key, value in state.items() if key != "rng"} for state in states]
            assert plain[0] == plain[1]  # the RNG's tensors were compared above
    assert any("exp_avg_sq" in path for path in seen) and any("module" in path for path in seen)
