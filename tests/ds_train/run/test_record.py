"""A run keeps the weights that it started from, and its directory takes no start from others."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from ds_train.checkpoints.state import InitialWeights
from ds_train.run.record import LAUNCHES, note_other_weights, refuse_other_weights

WARM = InitialWeights("/s/pptrain/checkpoints/step_00000200", "/s/pptrain", 200, 8, "ab")
MOVED = InitialWeights("/other/step_00000200", "", 200, 8, "ab")
LATER = InitialWeights("/s/pptrain/checkpoints/step_00000400", "/s/pptrain", 400, 9, "cd")
RANDOM = InitialWeights()


def _write_launches(directory: Path, *launches: InitialWeights | None) -> None:
    rows = [{"step": 0} | ({"initial_weights": asdict(weights)} if weights else {}) for weights in launches]
    (directory / LAUNCHES).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')


@pytest.mark.parametrize(
    ("recorded", "weights", "is_refused"),
    [
        ([WARM], WARM, False), ([WARM], MOVED, False), ([WARM], LATER, True), ([WARM], RANDOM, True),
        ([RANDOM], WARM, True), ([RANDOM], RANDOM, False), ([None], WARM, False), ([], WARM, False),
        ([WARM, LATER], LATER, False), ([WARM, None], LATER, True),
    ],
)  # fmt: skip
def test_a_directory_takes_no_start_from_other_weights(
    tmp_path: Path, recorded: list[InitialWeights | None], weights: InitialWeights, is_refused: bool
) -> None:
    refuse_other_weights(tmp_path, weights, ())
    _write_launches(tmp_path, *recorded)
    if is_refused:
        with pytest.raises(UserError, match=f"started from .*and this start is from {weights}.*--run_name"):
            refuse_other_weights(tmp_path, weights, ())
    refuse_other_weights(tmp_path, weights, ["initial_weights"] if is_refused else ())


@pytest.mark.parametrize(
    ("recorded", "place", "num_notes"),
    [(WARM, WARM.path, 0), (WARM, LATER.path, 1), (WARM, "", 1), (WARM, None, 0), (None, LATER.path, 0)],
)
def test_a_resume_notes_that_the_flag_means_other_weights_today(
    recorded: InitialWeights | None, place: str | None, num_notes: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        note_other_weights(recorded, place)
    assert len(caplog.messages) == num_notes
    assert all(f"{WARM.path}, at stage 8 and keeps" in message for message in caplog.messages)
