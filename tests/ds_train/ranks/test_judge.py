"""Which rank is to blame, and when: whole jobs of heartbeats, second by second, without processes or clocks."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import pytest

from ds_train.ranks.judge import End, Failure, Heartbeat, Judge, Patience
from ds_train.ranks.signals import ExitCode

PATIENCE = Patience()


@dataclass
class Job:
    """Ranks that launch a collective each second, as long as none of them is missing from the one before.

    Attributes:
        tick_s: time between two looks.
        ahead: collectives that a rank launches before it waits for the result of the first.
        seconds: of the job so far.
        ended: what the judges of ranks have decided.
    """

    size: int = 3
    tick_s: int = 1
    ahead: int = 3
    patience: Patience = PATIENCE
    seconds: int = 0
    ended: dict[int, End] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.beats = [Heartbeat(host=f"node{rank}", doing="a step", is_long=False) for rank in range(self.size)]
        self.judges = [Judge(rank, self.size, self.patience) for rank in range(self.size)]
        self.looked = [0] * self.size
        self.published = [replace(beat) for beat in self.beats]

    def run(
        self, seconds: int, *, gone: Collection[int] = (), stuck: Collection[int] = (), signalled: bool = False
    ) -> int:
        """Let seconds pass, or fewer if a judge ends the job; returns how many.

        Args:
            gone: ranks that do nothing: killed or stopped.
            stuck: ranks whose main thread does nothing.
        """
        for passed in range(0, seconds, self.tick_s):
            self.seconds += self.tick_s
            awake = [rank for rank in range(self.size) if rank not in gone]
            for rank in awake:
                beat = self.beats[rank]
                beat.number += 1
                if rank not in stuck and beat.num_launched < min(b.num_launched for b in self.beats) + self.ahead:
                    beat.num_launched += 1
                self.published[rank] = replace(beat)
            for rank in awake:
                self._look(rank, signalled)
            if self.ended:
                return passed + self.tick_s
        return seconds

    def _look(self, rank: int, signalled: bool) -> None:
        others = {other: self.published[other] for other in self.judges[rank].observed}
        passed_s, self.looked[rank] = float(self.seconds - self.looked[rank]), self.seconds
        end = self.judges[rank].look(passed_s, self.beats[rank], others, is_signalled=signalled)
        if end:
            self.ended[rank] = end
            if rank == 0:
                self.beats[0].verdict = end


def test_a_heartbeat_travels_whole() -> None:
    for beat in (Heartbeat(), Heartbeat(3, "a", "b", False, "c", 4, 5, 6, Failure(None, "d"), End(87, "e"))):
        assert Heartbeat.from_json(beat.to_json().encode()) == beat


def test_a_job_that_is_well_goes_on() -> None:
    job = Job()
    assert job.run(3000) == 3000


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_that_is_gone_is_named_within_a_minute(rank: int) -> None:
    job = Job()
    job.run(50)
    assert 30 <= job.run(1000, gone=[rank]) < 60
    by_whom = [0] if rank else [1, 2]
    for observer in by_whom:
        reason = f"rank {observer}: rank {rank} (node{rank}) gives no sign of life"
        assert job.ended.pop(observer) == End(ExitCode.RANK_LOST, reason)
    assert not job.ended
    if rank:
        job.run(1, gone=[rank])
        assert job.ended[3 - rank] == End(ExitCode.RANK_LOST, reason), "rank 0's verdict reaches the others"


def test_a_rank_that_never_gives_a_sign_is_named() -> None:
    job = Job()
    assert job.run(1000, gone=[2]) < 60
    assert job.ended[0].reason == "rank 0: rank 2 (node2) gives no sign of life"


def test_many_ranks_of_a_lost_node_are_one_short_message() -> None:
    job = Job(size=20)
    job.run(10)
    job.run(100, gone=range(8, 16))
    assert job.ended[0].reason.startswith("rank 0: rank 8 (node8) gives no sign of life; rank 9 ")
    assert job.ended[0].reason.endswith("rank 11 (node11) gives no sign of life; and 4 more")


@pytest.mark.parametrize("stuck", [0, 1])
def test_the_rank_that_hangs_is_named_though_all_are_alive_and_the_others_ran_ahead(stuck: int) -> None:
    job = Job()
    job.run(100)
    job.beats[stuck].doing, job.beats[stuck].place = "step 7", "step/stream.py:190"
    assert 600 < job.run(1000, stuck=[stuck]) < 620
    (end,) = job.ended.values()
    assert end.code == ExitCode.RANK_LOST
    who = f"rank {stuck} (node{stuck}) does not arrive: in step 7, at step/stream.py:190"
    assert end.reason == f"rank 0: no progress for 601 s: {who}"


def test_where_none_is_behind_all_places_are_shown() -> None:
    """A network that swallows a message, or a device that hangs."""
    job = Job(size=2)
    job.run(10)
    job.run(1000, stuck=[0, 1])
    expected = "no rank is behind the others; rank 0 (node0) is in a step, at an unknown place; rank 1 (node1) is"
    assert expected in job.ended[0].reason


def test_long_work_has_more_time_and_none_ends_while_bytes_move() -> None:
    job = Job(tick_s=5)
    job.run(10)
    job.beats[1].is_long = True  # the others have run ahead, into the next step
    for _ in range(10):
        assert job.run(1700, stuck=[1]) == 1700
        job.beats[1].moved += 1  # a slow disk
    assert 1790 < job.run(3000, stuck=[1]) <= 1810
    assert "rank 1 (node1) does not arrive" in job.ended[0].reason


def test_bytes_that_move_are_no_progress_of_a_step() -> None:
    job = Job()
    job.run(10)
    for _ in range(6):
        job.beats[0].moved += 1  # a checkpoint that is written meanwhile
        job.run(101, stuck=[1])
    assert job.ended


def test_a_longer_hang_timeout_holds_for_long_work_too() -> None:
    job = Job(tick_s=5, patience=Patience(stalled_s=5000))
    for beat in job.beats:
        beat.is_long = True
    assert job.run(4900, stuck=[0, 1, 2]) == 4900


def test_a_pause_of_all_that_ends_at_different_moments_is_no_loss() -> None:
    """Slurm suspends and resumes one node after the other."""
    job = Job()
    job.run(100)
    assert job.run(20, gone=[1]) == 20
    assert job.run(20, gone=[0, 1]) == 20
    job.run(5000, gone=[0, 1, 2])
    assert job.run(25, gone=[0, 2]) == 25
    assert job.run(30, gone=[0]) == 30
    assert job.run(5000) == 5000


def test_a_pause_before_the_first_look_has_grace_too() -> None:
    job = Job()
    job.run(1000, gone=[0, 1, 2])
    assert job.run(50, gone=[0]) == 50


def test_after_a_pause_a_rank_that_does_not_wake_up_is_named_with_grace() -> None:
    job = Job()
    job.run(100)
    job.run(1000, gone=[0, 1, 2])
    assert 60 <= job.run(1000, gone=[1]) < 65
    assert job.ended[0].reason == "rank 0: rank 1 (node1) gives no sign of life"


def test_grace_ends_with_its_time() -> None:
    job = Job()
    job.run(1000, gone=[0, 1, 2])
    job.run(100)
    assert job.run(1000, gone=[1]) < 35


def test_pauses_count_neither_as_a_hang_nor_as_silence() -> None:
    job = Job()
    job.run(100)
    job.run(500, stuck=[1])
    job.run(10_000, gone=[0, 1, 2])
    assert job.run(600, stuck=[1]) == 600, "the count starts again"
    assert job.run(1000, stuck=[1]) < 100


def test_an_error_that_a_lost_rank_causes_names_that_rank_sooner() -> None:
    job = Job()
    job.run(100)
    job.run(1, gone=[1])
    for rank in (0, 2):
        job.beats[rank].failure = Failure(None, "RuntimeError: Connection closed by peer")
    assert job.run(1000, gone=[1], stuck=[0, 2]) < 15
    expected = "rank 0: rank 1 (node1) gives no sign of life (RuntimeError: Connection closed by peer)"
    assert job.ended[0] == End(ExitCode.RANK_LOST, expected)


def test_a_last_heartbeat_may_arrive_after_the_error() -> None:
    job = Job()
    job.run(100)
    job.beats[0].failure = Failure(None, "RuntimeError: Connection closed by peer")
    job.run(1, stuck=[0])
    assert job.run(1000, gone=[1], stuck=[0]) < 15
    assert job.ended[0].code == ExitCode.RANK_LOST


def test_a_rank_that_is_killed_before_its_first_heartbeat_is_named() -> None:
    job = Job()
    job.beats[0].failure = Failure(None, "RuntimeError: Connection closed by peer")
    assert job.run(1000, gone=[1], stuck=[0]) < 15
    assert job.ended[0].reason.startswith("rank 0: rank 1 ")


def test_an_error_of_a_rank_with_all_others_alive_is_its_own() -> None:
    job = Job()
    job.run(100)
    job.beats[2].failure = Failure(None, "KeyError: a mistake")
    assert job.run(1000, stuck=[2]) < 15
    assert job.ended[0] == End(ExitCode.ERROR, "rank 2: KeyError: a mistake")


@pytest.mark.parametrize("code", [ExitCode.ERROR, ExitCode.RANK_LOST])
def test_an_error_of_known_cause_is_not_doubted(code: ExitCode) -> None:
    job = Job()
    job.run(100)
    job.beats[1].failure = Failure(None, "RuntimeError: Connection closed by peer")
    job.beats[2].failure = Failure(code, "its disk is full")
    assert job.run(1000, stuck=[1, 2]) <= 3
    assert job.ended[0] == End(code, "rank 2: its disk is full")


def test_a_launcher_s_signal_makes_a_silent_rank_suspect() -> None:
    """The deepspeed launcher sends SIGTERM when a rank has died, and SIGKILL half a minute later."""
    job = Job()
    job.run(100)
    assert job.run(1000, gone=[1], signalled=True) < 15


def test_limits_of_users() -> None:
    assert PATIENCE.silent_s == 30 and PATIENCE.silent_s + 3 * PATIENCE.beat_s < 60
    assert PATIENCE.suspect_s < 30, "launchers kill half a minute after their signal"
