"""Compares two conditions over the seeds that both have: what each needs for a target, who leads, and how it ends."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_tools.base.errors import UserError
from data_tools.base.text_table import pluralize
from data_tools.compare.conditions import Condition, SeedRun
from data_tools.compare.curves import Crossing, common_positions, crossings
from data_tools.compare.estimates import MIN_SEEDS, Estimate, geometric_mean_of, mean_of

FRACTIONS = (0.25, 0.5, 0.75, 1.0)  # of the baseline's run


@dataclass(frozen=True)
class Target:
    """A level of the metric, and what both conditions need for it; lists have a value for each seed, NaN for never.

    Attributes:
        name: what the level is.
        levels: the level; that of each seed's own baseline, unless it was given.
        base_needs, run_needs: positions on the axis.
        are_first_rows: of each seed, whether both have it from their first row on: then nothing follows.
        saved: C4 tokens saved per token of pre-pretraining (the marginal rate of substitution of Hu et al. 2025).
    """

    name: str
    levels: list[float]
    base_needs: list[float]
    run_needs: list[float]
    are_first_rows: list[bool]
    saved: Estimate

    @property
    def ratios(self) -> np.ndarray:
        return np.where(self.are_first_rows, np.nan, np.array(self.base_needs) / np.array(self.run_needs))

    @property
    def speed_up(self) -> Estimate:
        """What the baseline needs, in units of what the run needs; no mean where a seed never reaches its level."""
        return geometric_mean_of(self.ratios)


@dataclass(frozen=True)
class Comparison:
    """A condition against the baseline.

    Attributes:
        seeds: those of both, in the order of all lists.
        lead_at, crossings: of the mean over seeds of run − baseline.
        end: the last position that all curves have.
        final: the difference run − baseline there, paired by seed.
        final_of_seeds: the same for each seed.
        notes: what limits the conclusions, a sentence each.
    """

    base: str
    name: str
    seeds: list[int]
    targets: list[Target]
    crossings: list[Crossing]
    end: float
    final: Estimate
    final_of_seeds: list[float]
    falls: bool
    notes: list[str]


def compare(base: Condition, run: Condition, levels: Sequence[float] = (), counts_c4: bool = False) -> Comparison:
    """Compare a condition with the baseline, seed by seed.

    Args:
        levels: targets beside those that are the baseline's own at `FRACTIONS` of its run.
        counts_c4: whether the axis counts C4 tokens, so that tokens saved can be held against those of pre-pretraining.

    Raises:
        UserError: they have no seed in common, or no stretch of the axis.
    """
    seeds = sorted(base.runs.keys() & run.runs.keys())
    if not seeds:
        raise UserError(
            f"{base.name} has {_listed(base.runs)} and {run.name} {_listed(run.runs)} in run.yaml; runs are compared "
            "seed by seed, so give runs of the same seeds."
        )
    pairs = [(base.runs[seed], run.runs[seed]) for seed in seeds]
    curves = [of_pair.curve for pair in pairs for of_pair in pair]
    positions = common_positions(curves)
    if not len(positions):
        raise UserError(f"{base.name} and {run.name} have no stretch of the axis in common; train the shorter on.")
    differences = np.array([other.curve.at(positions) - one.curve.at(positions) for one, other in pairs])
    falls = curves[0].falls
    noise = np.sqrt(sum(curve.noise**2 for curve in curves)) / len(pairs)
    found = crossings(positions, differences.mean(axis=0) * (-1 if falls else 1), float(noise))
    targets = [*_own_targets(pairs, counts_c4), *(_given_target(level, pairs, counts_c4) for level in levels)]
    final = differences[:, -1]
    notes = [
        *_pairing_notes(base, run, len(seeds)), *_branch_notes(base, run, seeds), *_length_notes(base, run, seeds),
        *_target_notes(targets, pairs),
    ]  # fmt: skip
    return Comparison(
        base.name, run.name, seeds, targets, found, float(positions[-1]), mean_of(final), final.tolist(), falls, notes
    )


_Pairs = Sequence[tuple[SeedRun, SeedRun]]


def _own_targets(pairs: _Pairs, counts_c4: bool) -> list[Target]:
    targets = []
    for fraction in FRACTIONS:
        baselines = [one.curve for one, _ in pairs]
        levels = [curve.level(curve.start + fraction * (curve.end - curve.start)) for curve in baselines]
        targets.append(_target(f"{100 * fraction:.0f} % of its run", levels, pairs, counts_c4))
    return targets


def _given_target(level: float, pairs: _Pairs, counts_c4: bool) -> Target:
    return _target("given", [level] * len(pairs), pairs, counts_c4)


def _target(name: str, levels: list[float], pairs: _Pairs, counts_c4: bool) -> Target:
    base_needs = [one.curve.reach(level) for (one, _), level in zip(pairs, levels, strict=True)]
    run_needs = [other.curve.reach(level) for (_, other), level in zip(pairs, levels, strict=True)]
    firsts = [(one.curve.positions[0], other.curve.positions[0]) for one, other in pairs]
    are_first_rows = [
        needs == first for needs, first in zip(zip(base_needs, run_needs, strict=True), firsts, strict=True)
    ]
    spent = np.array([other.pptrain_tokens - one.pptrain_tokens for one, other in pairs])
    saved = np.subtract(base_needs, run_needs) / np.where(spent > 0, spent, np.nan)
    saved[are_first_rows] = np.nan
    return Target(
        name, levels, base_needs, run_needs, are_first_rows, mean_of(saved) if counts_c4 else Estimate(np.nan)
    )


def _listed(runs: dict[int, SeedRun]) -> str:
    return f"{'seed' if len(runs) == 1 else 'seeds'} {', '.join(map(str, sorted(runs)))}"


def _pairing_notes(base: Condition, run: Condition, num_pairs: int) -> list[str]:
    notes = []
    for one, other in ((base, run), (run, base)):
        if alone := sorted(one.runs.keys() - other.runs.keys()):
            left_out = ", ".join(map(str, alone))
            notes.append(f"{one.name}: seed {left_out} has no partner in {other.name} and is left out.")
    if num_pairs < MIN_SEEDS:
        notes.append(
            f"{pluralize(num_pairs, 'seed')}: no interval. Whether another seed would show the same is not known; "
            f"{MIN_SEEDS} seeds give an interval."
        )
    return notes


def _branch_notes(base: Condition, run: Condition, seeds: Sequence[int]) -> list[str]:
    notes = []
    for parent, child in ((base, run), (run, base)):
        points = [child.runs[seed].branched_from for seed in seeds]
        parents = [parent.runs[seed].directory for seed in seeds]
        if any(point and parent_of in point.parents for point, parent_of in zip(points, parents, strict=True)):
            notes.append(
                f"{child.name} is a branch of {parent.name}: its rows begin there; before, both are one run. "
                "Only what comes after can be compared; a level that was reached before is no gain of either."
            )
    return notes


def _length_notes(base: Condition, run: Condition, seeds: Sequence[int]) -> list[str]:
    notes = []
    of_both = [(condition, condition.runs[seed], seed) for condition in (base, run) for seed in seeds]
    for condition, one, seed in of_both:
        if one.total_steps and one.last_step < one.total_steps:
            notes.append(
                f"{condition.name}, seed {seed}, is at step {one.last_step:,} of {one.total_steps:,}: fractions are of "
                "what there is, and what it has not reached it may still reach."
            )
    ends = sorted({one.total_steps for _, one, _ in of_both if one.decays and one.total_steps})
    if len(ends) > 1 or len({one.decays for _, one, _ in of_both}) > 1:
        listed = " and ".join(f"{end:,}" for end in ends)
        notes.append(
            f"Learning rates decay to different steps ({listed}{'' if len(ends) > 1 else ' and not at all'}): losses "
            "in the middle of a schedule are not comparable, only those at its end."
        )
    return notes


def _target_notes(targets: Sequence[Target], pairs: _Pairs) -> list[str]:
    firsts = np.array([[curve.curve.positions[0] for curve in pair] for pair in pairs]).T
    early = [t.name for t in targets if (np.array([t.base_needs, t.run_needs]) <= firsts).any()]
    if not early:
        return []
    return [
        f"A first row has the target already ({', '.join(early)}): what it needs is at most that; evaluate earlier."
    ]
