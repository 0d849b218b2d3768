"""Decides from heartbeats whether a job must end, and which rank is to blame. Knows no clock, threads or network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from ds_train.ranks.signals import ExitCode

_SHOWN = 4  # ranks that a message describes


class End(NamedTuple):
    """Why a job ends, with its exit code."""

    code: int
    reason: str


class Failure(NamedTuple):
    """An error that ends a rank.

    Attributes:
        code: exit code; None for an error that may be this rank's own, or come from a rank that is gone.
    """

    code: int | None
    reason: str


@dataclass
class Heartbeat:
    """What a rank publishes each second.

    Attributes:
        number: counts up while the process lives; 0 before the first.
        host: the node.
        doing: the last report of progress.
        is_long: whether that may take as long as files take. It counts for the ranks that the others wait for.
        place: file and line of the main thread.
        num_launched: collectives launched so far. The rank with the fewest is the one that the others wait for.
        num_reports: reports of progress so far.
        moved: bytes read and written so far, in coarse units.
        failure: the error that ends this rank.
        verdict: what rank 0 has decided for all ranks.
    """

    number: int = 0
    host: str = "an unknown node"
    doing: str = "starting"
    is_long: bool = True
    place: str = "an unknown place"
    num_launched: int = 0
    num_reports: int = 0
    moved: int = 0
    failure: Failure | None = None
    verdict: End | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> "Heartbeat":
        beat = cls(**json.loads(text))
        beat.failure = beat.failure and Failure(*beat.failure)
        beat.verdict = beat.verdict and End(*beat.verdict)
        return beat


@dataclass(frozen=True)
class Patience:
    """How long what may last, in seconds of the observer's own running time.

    Attributes:
        stalled_s: no progress on any rank.
        long_s: the same in start-up and saves, where reading and writing count as progress.
        silent_s: no heartbeat of a rank; it is dead, stopped or cut off.
        suspect_s: the same once a rank has failed or a signal has arrived. An error of unknown cause is the rank's
            own if no other rank turns out to be gone in this time.
        pause_s: an observer that did not run for this long was paused itself, with its process or its machine.
        grace_s: what other ranks get in addition after that: nodes are suspended and resumed at different moments.
        beat_s: between two heartbeats, and between two looks.
    """

    stalled_s: float = 600.0
    long_s: float = 1800.0
    silent_s: float = 30.0
    suspect_s: float = 10.0
    pause_s: float = 5.0
    grace_s: float = 30.0
    beat_s: float = 1.0


class Judge:
    """The judgement of one rank. Rank 0 observes all others and decides for all; they observe rank 0 only.

    Attributes:
        observed: the ranks.
    """

    def __init__(self, rank: int, num_ranks: int, patience: Patience) -> None:
        self._rank, self._patience = rank, patience
        self.observed = range(1, num_ranks) if rank == 0 else range(1)
        self._numbers = dict.fromkeys(self.observed, 0)
        self._silent_s = dict.fromkeys(self.observed, 0.0)
        self._failed_s = self._stalled_s = 0.0
        self._signs: list[tuple[int, int, int]] = []  # of progress

    def look(
        self, passed_s: float, own: Heartbeat, others: Mapping[int, Heartbeat], *, is_signalled: bool = False
    ) -> End | None:
        """Why the job must end, or None.

        Args:
            passed_s: since the last look.
            own, others: the latest heartbeats of this rank and of those observed.
            is_signalled: whether this rank received a signal: launchers send one when a rank is gone.
        """
        beats = {self._rank: own, **others}
        failures = {rank: beat.failure for rank, beat in sorted(beats.items()) if beat.failure}
        behind = _behind(beats)
        is_long = any(beat.is_long for beat in behind.values())
        self._count(passed_s, beats, has_failed=bool(failures), is_long=is_long)

        # A rank that is gone also makes others fail and stall, so it is looked for first.
        patience_s = self._patience.suspect_s if failures or is_signalled else self._patience.silent_s
        if silent := [rank for rank in self.observed if self._silent_s[rank] > patience_s]:
            return self._lost(_describe_silent(silent, beats, failures))
        if self._rank != 0:
            return others[0].verdict
        if failures:
            return self._own_error(failures)
        limit_s = max(self._patience.stalled_s, self._patience.long_s) if is_long else self._patience.stalled_s
        if self._stalled_s > limit_s:
            return self._lost(f"no progress for {self._stalled_s:.0f} s: {_describe_behind(behind, len(beats))}")
        return None

    def _lost(self, reason: str) -> End:
        return End(ExitCode.RANK_LOST, f"rank {self._rank}: {reason}")

    def _own_error(self, failures: Mapping[int, Failure]) -> End | None:
        """An error that is known not to come from a rank that is gone, or that has turned out not to."""
        known = {rank: failure for rank, failure in failures.items() if failure.code is not None}
        if known:  # the same error of other ranks, rank 0 among them, may be on its way
            is_settled = self._failed_s > self._patience.beat_s
        else:
            suspect_s, silence_s = self._patience.suspect_s, max(self._silent_s.values(), default=0.0)
            is_settled = self._failed_s > suspect_s and silence_s < suspect_s / 2
        if not is_settled:
            return None
        rank, failure = next(iter((known or failures).items()))
        return End(ExitCode.ERROR if failure.code is None else failure.code, f"rank {rank}: {failure.reason}")

    def _count(self, passed_s: float, beats: Mapping[int, Heartbeat], *, has_failed: bool, is_long: bool) -> None:
        """Add the time that passed to what has lasted, and start anew what has ended."""
        if passed_s > self._patience.pause_s:
            passed_s = 0.0
            self._failed_s = self._stalled_s = -self._patience.grace_s
            self._silent_s = dict.fromkeys(self._silent_s, -self._patience.grace_s)
        for rank in self.observed:
            is_news = self._numbers[rank] != beats[rank].number
            self._numbers[rank] = beats[rank].number
            self._silent_s[rank] = _lasted(self._silent_s[rank], passed_s, is_news)
        signs = [(beat.num_launched, beat.num_reports, beat.moved if is_long else 0) for beat in beats.values()]
        self._stalled_s = _lasted(self._stalled_s, passed_s, signs != self._signs)
        self._failed_s = _lasted(self._failed_s, passed_s, not has_failed)
        self._signs = signs


def _lasted(seconds: float, passed_s: float, is_over: bool) -> float:
    """How long something has lasted by now; negative as long as there is grace."""
    return min(seconds + passed_s, 0.0) if is_over else seconds + passed_s


def _describe_silent(silent: Sequence[int], beats: Mapping[int, Heartbeat], failures: Mapping[int, Failure]) -> str:
    ranks = _joined([f"rank {rank} ({beats[rank].host}) gives no sign of life" for rank in silent])
    reason = next((f" ({failure.reason})" for failure in failures.values()), "")
    return ranks + reason


def _behind(beats: Mapping[int, Heartbeat]) -> dict[int, Heartbeat]:
    """The ranks that have launched the fewest collectives, for which the others wait; all where none is ahead."""
    fewest = min(beat.num_launched for beat in beats.values())
    return {rank: beat for rank, beat in beats.items() if beat.num_launched == fewest}


def _describe_behind(behind: Mapping[int, Heartbeat], num_ranks: int) -> str:
    are_all = len(behind) == num_ranks
    verb = "is" if are_all else "does not arrive:"
    ranks = _joined([f"rank {n} ({beat.host}) {verb} in {beat.doing}, at {beat.place}" for n, beat in behind.items()])
    return f"no rank is behind the others; {ranks}" if are_all and num_ranks > 1 else ranks


def _joined(descriptions: Sequence[str]) -> str:
    more = len(descriptions) - _SHOWN
    return "; ".join(descriptions[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
