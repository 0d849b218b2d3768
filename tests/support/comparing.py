"""What two runs of one trajectory must have in common, bit by bit."""

from pathlib import Path
from typing import Any

import torch

TIMING = {"timestamp", "gpu_hours", "tokens_per_second", "data_wait_fraction", "peak_memory_gb"}


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a log without what depends on the clock and on the machine."""
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def tensors_of(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a nested checkpoint value, by path."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {k: v for key, item in items for k, v in tensors_of(item, f"{path}/{key}").items()}


def assert_same_checkpoint(run: Path, other: Path, step: int) -> None:
    """Weights, optimizer and training state of two runs are equal at a step, in the same files."""
    names = {path.name for path in (other / "checkpoints" / f"step_{step:08d}").glob("*.pt")}
    seen: set[str] = set()
    for name in names:
        loaded = [
            torch.load(r / "checkpoints" / f"step_{step:08d}" / name, weights_only=False, map_location="cpu")
            for r in (run, other)
        ]
        ours, theirs = map(tensors_of, loaded)
        assert ours.keys() == theirs.keys()
        seen |= ours.keys()
        assert [path for path in ours if not torch.equal(ours[path], theirs[path])] == []
        states = [value.get("ds_train") for value in loaded]
        if states[0]:
            plain = [
                {key: value for key, value in state.items() if key not in ("rng", "gpu_hours")} for state in states
            ]
            state, other_state = plain  # the RNG's tensors were compared above
            assert {key: (state[key], other_state[key]) for key in state if state[key] != other_state[key]} == {}
    assert any("exp_avg_sq" in path for path in seen) and any("module" in path for path in seen)
