"""Bad values in every field of the files that hold a run's data and state: one message, or they do no harm."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.base.errors import UserError
from data_tools.corpus.pack_progress import PackProgress
from data_tools.corpus.shards import META_NAME, PROGRESS_NAME, PackedBlocks
from data_tools.search.splits import Splits
from ds_train.checkpoints.manifest import MANIFEST, commit, defect_of, file_entry, saving_name
from ds_train.checkpoints.rank_rng import rng_state, set_rng_state
from ds_train.checkpoints.state import CLIENT_STATE_KEY, TrainState
from tests.support.bad_values import spoiled

NUM_CASES = 300
Found = tuple[Path, Callable[[Path], object]]


def _splits(scratch: Path, copy: Path) -> Found:
    shutil.copytree(next((scratch / "data" / "nl_splits").iterdir()), copy)
    return copy / "meta.json", lambda path: Splits(path.parent).fingerprint


def _pack(scratch: Path, copy: Path) -> Found:
    shutil.copytree(scratch / "data" / "c4_packed", copy)
    return copy / META_NAME, lambda path: PackedBlocks(path.parent).block(0)


def _progress(scratch: Path, copy: Path) -> Found:
    copy.mkdir()
    meta = json.loads((scratch / "data" / "c4_packed" / META_NAME).read_text())
    end = {"document": 3, "token": 1, "num_split": 0, "num_untokenized": 0}
    finished = [{"file": meta["validation"], "end": end}]
    (copy / PROGRESS_NAME).write_text(json.dumps({"parameters": meta, "source": meta["source"], "finished": finished}))
    return copy / PROGRESS_NAME, lambda path: PackProgress.read(path.parent)


def _manifest(scratch: Path, copy: Path) -> Found:
    saving = copy / saving_name(7)
    saving.mkdir(parents=True)
    (saving / "weights").write_bytes(b"1234")

    def check(path: Path) -> None:
        if defect := defect_of(path.parent):
            raise UserError(defect)

    return commit(copy, 7, {"weights": file_entry(saving / "weights")}) / MANIFEST, check


@pytest.mark.parametrize("make", [_splits, _pack, _progress, _manifest])
def test_every_field_of_a_file(make: Callable[[Path, Path], Found], tiny_scratch: Path, tmp_path: Path) -> None:
    path, check = make(tiny_scratch, tmp_path / "copy")
    check(path)
    cases = [*spoiled(json.loads(path.read_text()), NUM_CASES)]
    refused = 0
    for what, value in cases:
        path.write_text(json.dumps(value))
        try:
            check(path)
        except UserError as error:
            refused += 1
            assert len(str(error)) < 1500, what
    assert refused > len(cases) / 2


def test_every_field_of_the_state() -> None:
    state = TrainState(
        1337, 2, 4, 1, 8, 1, "bf16", step=7, window=[0, 1], rng=[{"python": 1}], ledger="ab", fingerprints={"pack": "x"}
    )
    (good,) = state.to_client_state().values()
    refused = 0
    for _, value in spoiled(good, NUM_CASES):
        try:
            TrainState.from_client_state({CLIENT_STATE_KEY: value}, "step_7")
        except UserError as error:
            refused += 1
            assert "step_7: its training state cannot be read" in str(error)
    assert refused > 150


@pytest.mark.parametrize(
    "spoil", [{"python": 3}, {"torch": [1]}, {"torch": torch.zeros(3)}, {"python": (3, (1, 2), None)}]
)
def test_states_of_random_generators(spoil: dict[str, Any]) -> None:
    before = random.getstate(), torch.get_rng_state()
    with pytest.raises(UserError, match="random generators cannot be read"):
        set_rng_state(rng_state() | spoil)
    random.setstate(before[0])
    torch.set_rng_state(before[1])


def test_a_manifest_without_files_is_no_checkpoint(tmp_path: Path) -> None:
    path, check = _manifest(tmp_path, tmp_path / "copy")
    path.write_text(json.dumps({"step": 7, "files": {}}))
    with pytest.raises(UserError, match=r"manifest\.json cannot be read \(files"):
        check(path)
