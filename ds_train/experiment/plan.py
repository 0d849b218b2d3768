"""Turns the grid of an experiment, conditions × seeds, into steps."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from data_tools.base.errors import UserError
from data_tools.compare.grid import by_condition, runs_with_curves, sharing_a_seed
from data_tools.compare.picks import METRIC, pick_best
from data_tools.search.splits import split_directory, split_file_name
from ds_train.experiment.conditions import BASE, BUILT_IN, PPTRAIN, Condition, variants
from ds_train.experiment.file import ExperimentFile
from ds_train.experiment.sizes import Spent, spent_by
from ds_train.experiment.steps import Records, Step
from ds_train.experiment.trainers import PRETRAIN, Pack, Trainers
from ds_train.ranks.world import World

_MOST_DRAWN = 8  # runs in a picture, and conditions in a comparison


class Experiment:
    """The steps of a grid.

    Args:
        directory: of all data and runs.
        launcher: starts pptrain, pretrain and evaluate, whose name replaces {}.

    Raises:
        UserError: the file has a fault that can be found before there are data.
    """

    def __init__(
        self,
        file: ExperimentFile,
        directory: Path,
        launcher: Sequence[str],
        conditions: Sequence[Condition],
        seeds: Sequence[int],
    ) -> None:
        if (number := len({condition.origin for condition in conditions})) > _MOST_DRAWN:
            raise UserError(
                f"{number} conditions are too many for one comparison; choose at most {_MOST_DRAWN} with --conditions."
            )
        self.file, self.directory, self.conditions, self.seeds = file, directory, conditions, seeds
        self.records = Records(directory / "steps")
        self.trainers = Trainers(file, directory, self._spent)
        self._launcher = launcher
        self._splits = self._splits_directory()
        self._check_once = cache(self._check_training)

    def steps(self) -> list[Step]:
        """All steps, in order. Lengths that follow from a pre-pretraining are set once that has ended."""
        steps = [*self.data(), *self._runs(), self._report()]
        if len(compared := self._compared()) > 1:
            flags = ["--experiment", str(self.directory), "--out", str(self.directory / "comparison")]
            if len(compared) > _MOST_DRAWN:
                own = [name for name in compared[1:] if name in {condition.origin for condition in self.conditions}]
                flags += ["--conditions", *own[: _MOST_DRAWN - 1]]
            steps.append(self._tool("compare", self.directory / "comparison", flags, title="compare", always_run=True))
        return list({step.name: step for step in steps}.values())

    def data(self) -> list[Step]:
        """What all runs share."""
        return [*self._documents_and_tokenizer(), self._pack(self.trainers.pack)]

    def check_data(self) -> None:
        """Check the flags of the commands that make data; `forecast` checks those of the runs.

        Raises:
            UserError: a command would refuse its flags.
        """
        from data_tools import build_data_splits, build_pretrain, fetch_assets, train_tokenizer  # these take seconds

        tools = {"build_data_splits": build_data_splits, "fetch_assets": fetch_assets,
                 "train_tokenizer": train_tokenizer, "build_pretrain": build_pretrain}  # fmt: skip
        for step in self.data():
            _, module, *flags = shlex.split(f"- {step.cache_key}")
            with self.file.naming(step.title):
                args = tools[module].parse(flags)
                if module == "build_pretrain" and not args.val_blocks:
                    raise UserError("val_blocks is 0, and conditions are compared by their loss on these blocks.")

    def _splits_directory(self) -> Path:
        splits = self.file.section("splits")
        if missing := {"max_input_size", "max_lookahead", "seed"} - set(splits):
            listed = ", ".join(sorted(missing))
            raise UserError(f"{self.file.path}: splits: {listed} missing; they name the directory.")
        return split_directory(self.directory, splits["max_input_size"], splits["max_lookahead"], splits["seed"])

    def _documents_and_tokenizer(self) -> list[Step]:
        flags = ["--scratch_dir", str(self.directory), *self._flags("splits")]
        steps = [self._tool("build_data_splits", self._splits, flags, title="splits")]
        if self.file.has("corpus"):
            corpus = self.directory / "corpus"
            flags = ["corpus", "--out", str(corpus), *self._flags("corpus")]
            steps.append(self._tool("fetch_assets", corpus, flags, title="corpus"))
        if self.file.trains_tokenizer:
            flags = ["--out", self.file.tokenizer, "--corpus", *self.file.documents]
            flags += ["--extra", str(self._splits / split_file_name("mixin")), *self._flags("tokenizer")]
            tokenizer = Path(self.file.tokenizer)
            steps.append(self._tool("train_tokenizer", tokenizer, flags, title="tokenizer", needs=steps))
        return steps

    def _pack(self, pack: Pack) -> Step:
        size = ["--seq_len", str(self.trainers.seq_len)]
        if pack.num_blocks:
            size += ["--num_blocks", str(pack.num_blocks), "--half", pack.half]
        source = ["--source", *documents] if (documents := self.file.documents) else []
        directory = self.trainers.pack_dir(pack)
        flags = ["--pack_dir", str(directory), "--tokenizer", self.file.tokenizer, *size, *source]
        flags += self._flags("pack", without="source")
        title = "pack" if pack == self.trainers.pack else f"pack {pack.name}"
        return self._tool("build_pretrain", directory, flags, title=title, needs=self._documents_and_tokenizer()[1:])

    def _runs(self) -> Iterator[Step]:
        for seed in self.seeds:
            for condition in self.conditions:
                first = self._first_phase(condition, seed)
                if first and (other := self.trainers.replayed(condition)):
                    yield self._pptrain(other, seed)
                yield from first
                if first:
                    yield self._evaluation(condition.pptrain, seed, first[0])
                yield from self._second_phase(condition, seed, first)

    def _first_phase(self, condition: Condition, seed: int) -> list[Step]:
        """The pre-pretraining, where a condition starts from it or has its size; then that on C4, with its pack."""
        if condition.first == "none" and not condition.has_total_compute:
            return []
        pptrain = self._pptrain(condition, seed)
        if condition.first != "c4":
            return [pptrain]
        pack = self._pack(self.trainers.c4_phase_pack(condition, seed))
        flags = self.trainers.c4_phase(condition, seed)
        needs = [*self._documents_and_tokenizer(), pack, pptrain]
        title = f"{condition.name}'s first phase, on C4"
        return [pptrain, pack, self._trainer(PRETRAIN, condition.first_phase, seed, flags, needs, title)]

    def _second_phase(self, condition: Condition, seed: int, first: Sequence[Step]) -> list[Step]:
        """The pretraining with its pack, and its evaluation."""
        pack = self._pack(self.trainers.pretrain_pack(condition, seed))
        flags = self.trainers.pretrain(condition, seed)
        needs = [*self._documents_and_tokenizer(), pack, *first[-1:]]
        trained = self._trainer(PRETRAIN, condition.name, seed, flags, needs, f"pretrain {condition.title}")
        return [pack, trained, self._evaluation(condition.name, seed, trained)]

    def _pptrain(self, condition: Condition, seed: int) -> Step:
        title = f"pre-pretraining{f' of {condition.pptrain_of}' if condition.pptrain_of else ''}"
        flags, needs = self.trainers.pptrain(condition, seed), self._documents_and_tokenizer()
        if other := self.trainers.replayed(condition):
            needs.append(self._pptrain(other, seed))
        return self._trainer(PPTRAIN, condition.pptrain, seed, flags, needs, title)

    def _spent(self, condition: Condition, seed: int) -> Spent | None:
        pptrain = self._pptrain(condition, seed)
        return spent_by(pptrain.product) if self.records.is_done(pptrain) else None

    def _trainer(self, phase: str, name: str, seed: int, flags: list[str], needs: Sequence[Step], title: str) -> Step:
        run = self.trainers.run(name, seed)
        return Step(
            name=f"{name}/seed_{seed}",
            title=f"{title}, seed {seed}",
            cache_key=shlex.join([phase, *flags]),
            command=self._launch(phase, flags),
            product=run,
            needs=tuple(needs),
            run=run,
            check=self._check_once,
        )

    def _check_training(self) -> None:
        """Run the trainers' own checks before the first of them spends hours."""
        from ds_train.phases import pptrain, pretrain  # takes seconds

        world, seed = World(0, 0, 1), self.seeds[0]
        for condition in self.conditions:
            if condition.first_phase:
                if not self.trainers.replayed(condition):  # which does not exist yet
                    pptrain.prepare(self.trainers.pptrain(condition, seed), world)
            elif self.trainers.pretrain_pack(condition, seed) == self.trainers.pack:  # others do not exist yet
                pretrain.prepare(self.trainers.pretrain(condition, seed), world)

    def _evaluation(self, name: str, seed: int, trained: Step) -> Step:
        flags = self.trainers.evaluate(name, seed)
        return Step(
            name=f"evaluate/{name}/seed_{seed}",
            title=f"evaluate {name}, seed {seed}",
            cache_key=shlex.join(["evaluate", *flags]),
            command=self._launch("evaluate", flags),
            product=self.trainers.evaluation_file(name, seed),
            needs=(trained,),
        )

    def _report(self) -> Step:
        """The runs of one seed, drawn; compare draws all seeds."""
        seed, conditions = self._drawn()
        titles = {condition.name: condition.title for condition in conditions}
        titles |= {c.pptrain: f"pre-pretraining {c.pptrain_of}".rstrip() for c in conditions if c.first_phase}
        titles = dict([*titles.items()][:_MOST_DRAWN])
        flags = [*(str(self.trainers.run(name, seed)) for name in titles), "--names", *titles.values()]
        flags += ["--evaluation", *(str(self.trainers.evaluation_file(name, seed)) for name in titles)]
        directory = self.directory / "report"
        return self._tool("plot_run", directory, [*flags, "--out", str(directory)], title="report", always_run=True)

    def _drawn(self) -> tuple[int, list[Condition]]:
        """A seed, and all its conditions that this command runs or an earlier one has finished: the seed with most."""
        known = {**BUILT_IN, **self.file.conditions}
        names = dict.fromkeys([*self.file.conditions, *BUILT_IN])
        in_order = [one for name in names for one in variants(known[name], self.file.vary)]
        found = {
            seed: [condition for condition in in_order if self._is_drawn(condition, seed)]
            for seed in dict.fromkeys([*self.file.seeds, *self.seeds])
        }
        seed, conditions = max(found.items(), key=lambda item: len(item[1]))
        return seed, self._picked(conditions)

    def _picked(self, conditions: Sequence[Condition]) -> list[Condition]:
        """One of each, where they have several values: the one that compare picks, or the first until it can."""
        by_name = {condition.name: condition for condition in conditions}
        chosen = {condition.origin: condition for condition in reversed(conditions)}
        if len(chosen) < len(conditions):
            runs = {name: found for name, found in runs_with_curves(self.directory).items() if name in by_name}
            with suppress(UserError):  # the runs of some values have not begun
                _, picks = pick_best(runs, METRIC)
                chosen |= {pick.condition: by_name[f"{pick.condition}/{pick.value}"] for pick in picks}
        return [*chosen.values()][::-1]

    def _is_drawn(self, condition: Condition, seed: int) -> bool:
        if condition in self.conditions and seed in self.seeds:
            return True
        *_, evaluation = self._second_phase(condition, seed, self._first_phase(condition, seed))
        return self.records.is_done(evaluation)

    def _compared(self) -> list[str]:
        """The conditions that have a run of a seed of the baseline's in this directory, or will have; it is first."""
        runs = by_condition(runs_with_curves(self.directory))
        for condition in self.conditions:
            runs.setdefault(condition.origin, []).extend(self.trainers.run(condition.name, seed) for seed in self.seeds)
        return [BASE, *sharing_a_seed(runs, BASE)] if BASE in runs else []

    def _flags(self, section: str, without: str = "") -> list[str]:
        values = {name: value for name, value in self.file.section(section).items() if name != without}
        return self.file.arguments(values, section)

    def _tool(
        self,
        module: str,
        product: Path,
        flags: list[str],
        *,
        title: str,
        needs: Sequence[Step] = (),
        always_run: bool = False,
    ) -> Step:
        command = [sys.executable, "-m", f"data_tools.{module}", *flags]
        return Step(
            title, title, shlex.join([module, *flags]), command, product, needs=tuple(needs), always_run=always_run
        )

    def _launch(self, phase: str, flags: list[str]) -> list[str]:
        return [*(part.replace("{}", phase) for part in self._launcher), *flags]
