"""A replay is promoted where the run replayed was, so that it trains the same samples; other data are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_tools.base.errors import UserError
from ds_train.checkpoints.state import TrainState
from ds_train.config.flags import parse_flags
from ds_train.config.phase_flags import PPTrainFlags
from ds_train.config.trainer_flags import RunFlags
from ds_train.phases import pptrain
from ds_train.phases.curriculum import Curriculum, Replay
from ds_train.phases.pptrain import make_curriculum
from ds_train.phases.replay import check_same_data, read_replay
from ds_train.ranks.signals import ExitCode
from ds_train.ranks.world import World
from tests.support import tiny
from tests.support.launching import read_log
from tests.support.pretended_training import CURRICULUM, pretended_launch
from tests.support.runs import write_run

NEVER = replace(CURRICULUM, threshold=1.0)  # seven of eight pretended answers are right


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    return pretended_launch(tmp_path, monkeypatch)


@pytest.fixture
def run(launch, tmp_path: Path) -> Path:
    """A run of pptrain to the end of its curriculum, promoted at steps 3, 6 and 9."""
    launch()
    return (tmp_path / "pptrain").rename(tmp_path / "replayed")


def ledgers(run: Path) -> list[str]:
    return [row["ledger"] for row in read_log(run)]


def test_a_replay_trains_the_same_samples_whatever_the_model_answers(launch, run: Path, tmp_path: Path) -> None:
    replay = read_replay(run, CURRICULUM.stages)
    assert replay == Replay((3, 6, 9), 9)
    code, saved, _ = launch(curriculum=replace(NEVER, replay=replay))
    assert code == ExitCode.FINISHED and saved[9].finished
    assert ledgers(tmp_path / "pptrain") == ledgers(run)
    launch(curriculum=NEVER, max_steps=9)
    assert ledgers(tmp_path / "pptrain")[-1] != ledgers(run)[-1]


def test_of_an_unfinished_run_its_promotions_so_far_are_known(launch, tmp_path: Path) -> None:
    launch(stop_step=7)
    assert read_replay(tmp_path / "pptrain", CURRICULUM.stages) == Replay((3, 6), 7)


def test_a_replay_is_reported_as_one() -> None:
    replayed = replace(CURRICULUM, replay=Replay((3, 6), 7))
    assert str(replayed) == "stages 1 … 4; 2 promotions as in the run replayed, which is known to step 7"
    assert replayed.warnings(512) == [] and replayed.fewest_steps(8) == 7


@pytest.mark.parametrize("stages", [[1, 2, 3, 4], [2, 4], [1, 4]])
def test_a_run_of_other_stages_is_refused(run: Path, stages: list[int]) -> None:
    with pytest.raises(UserError, match=r"trained the stages 1 3 4, and this run's are .* --stage_step"):
        read_replay(run, stages)


def test_a_run_of_the_other_phase_is_refused(launch, tmp_path: Path) -> None:
    launch("pretrain")
    with pytest.raises(UserError, match=r"has no stages; give a run of pptrain"):
        read_replay(tmp_path / "pretrain", [1])


def test_a_run_that_saw_other_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint"):
        check_same_data(tmp_path, 1, 8, {})
    checkpoint = tmp_path / "checkpoints" / "step_00000007"
    checkpoint.mkdir(parents=True)
    state = TrainState(1, 1, 8, 1, 8, 0, "fp32", fingerprints={"splits": "a", "curr_window": "200"})
    torch.save(state.to_client_state(), checkpoint / "mp_rank_00_model_states.pt")
    check_same_data(tmp_path, 1, 8, {"splits": "a", "generator_examples": "newer than the run"})
    for seed, batch, splits, named in ((2, 8, "a", "seed 1"), (1, 9, "a", "global_batch 8"), (1, 8, "b", "splits a")):
        with pytest.raises(UserError, match=rf"saw other data \({named} there, .* here\)"):
            check_same_data(tmp_path, seed, batch, {"splits": splits})


def curriculum(*flags: str) -> Curriculum:
    (found,), _ = parse_flags(PPTrainFlags, description="", argv=[*flags])
    return make_curriculum(found, 8)


def test_without_a_curriculum_is_gated_from_the_last_stage_on() -> None:
    assert curriculum("--curriculum", "none") == curriculum("--start_stage", "8") != curriculum()
    assert curriculum("--curriculum", "none", "--start_stage", "8").stages == [8]


@pytest.fixture
def setup(tiny_scratch: Path, tmp_path: Path):
    """What pptrain makes of a replay of a run that was promoted at steps 1 and 2, and is at step 3."""
    replayed = write_run(
        tmp_path / "climbing",
        [{"step": step, "stage": step, "alpha": step / 8} for step in (1, 2, 3)],
        [{"step": step, "stage": step + 1, "alpha": (step + 1) / 8, "mastered": step > 0} for step in (0, 1, 2)],
    )
    checkpoint = replayed / "checkpoints" / "step_00000003"
    checkpoint.mkdir(parents=True)
    state = TrainState(RunFlags(scratch_dir="").seed, 1, 8, 1, 8, 0, "fp32")
    torch.save(state.to_client_state(), checkpoint / "mp_rank_00_model_states.pt")
    flags = ["--curriculum", "replay", "--replay_run", str(replayed), "--global_batch", "8", "--micro_batch", "4"]
    return lambda *more: pptrain.prepare([*tiny.flags(tiny_scratch), *flags, *more], World(0, 0, 1)).make_setup()


def test_only_promotions_within_the_length_are_compared_on_resume(setup) -> None:
    assert (setup().fingerprints["replay"], setup().cadence.max_steps) == ("1 2", 3)
    assert setup("--max_steps", "1").fingerprints["replay"] == "1"
    with pytest.raises(UserError, match="--max_steps 4 is beyond step 3, the last of --replay_run"):
        setup("--max_steps", "4")


def test_all_ranks_take_what_rank_0_has_read(setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that is replayed may be promoted between the looks of two ranks."""
    of_rank_0 = Replay((1,), 2)

    def on_main(world: World, call):
        found = call()
        return replace(found, replay=of_rank_0) if isinstance(found, Curriculum) else found

    monkeypatch.setattr(pptrain, "on_main", on_main)
    found = setup()
    assert found.phase.curriculum.replay == of_rank_0
    assert (found.fingerprints["replay"], found.cadence.max_steps) == ("1", 2)
