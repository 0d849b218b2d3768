"""Turns the file of an experiment into its steps."""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import UserError
from data_tools.search.splits import split_directory, split_file_name
from ds_train import evaluate
from ds_train.config.flags import flags_known_to, names_with_role, parse_flags
from ds_train.config.run_file import flags_of, read_mapping
from ds_train.config.trainer_flags import GROUPS
from ds_train.experiment.conditions import CONDITIONS, PPTRAIN, Condition, evaluation_file
from ds_train.experiment.steps import Step
from ds_train.ranks.world import World

_SECTIONS = ("splits", "corpus", "tokenizer", "pack", "training", "pptrain", "pretrain", "evaluate")
_SET_HERE = {
    *names_with_role(GROUPS["pretrain"], "launch"),
    *("scratch_dir", "run_name", "pptrain_checkpoint", "pptrain_run", "data_dir", "pack_dir", "tokenizer"),
    *("num_ranks", "num_nodes", "num_blocks", "total_blocks", "effective_batch", "corpus", "extra", "out"),
    *("split", "output"),
}


class Experiment:
    """The steps of a CONFIG.

    Raises:
        UserError: it has a fault that can be found before there are data.
    """

    def __init__(self, config: Path, scratch: Path, launcher: Sequence[str]) -> None:
        self.scratch, self._config, self._launcher = scratch, config, launcher
        content = read_mapping(config, str(config))
        self._sections = {name: _section(config, name, value) for name, value in content.items()}
        self._tokenizer = self._tokenizer_spec()
        self._check_flags()

    def check(self) -> None:
        """Run the checks of all commands that need no data, before hours are spent on data.

        Raises:
            UserError: a command would refuse its flags, JSON or model.
        """
        from data_tools import build_data_splits, build_pretrain, fetch_assets, train_tokenizer  # these take seconds
        from ds_train.phases.early_check import check_early

        tools = {"build_data_splits": build_data_splits, "fetch_assets": fetch_assets,
                 "train_tokenizer": train_tokenizer, "build_pretrain": build_pretrain}  # fmt: skip
        for step in self._data():
            _, module, *flags = shlex.split(f"- {step.cache_key}")
            with self._naming(step.title):
                tools[module].parse(flags)
        lookahead = int(self._sections["splits"]["max_lookahead"])
        with self._naming("pptrain"):
            check_early("pptrain", self._pptrain_flags(), lookahead, has_weights=False)
        for condition in CONDITIONS:
            with self._naming("pretrain"):
                check_early("pretrain", self._pretrain_flags(condition), lookahead, condition.is_pretrained)

    @contextmanager
    def _naming(self, section: str) -> Iterator[None]:
        """Name the file and the section in a message."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self._config}: {section}: {error}") from None

    def steps(self) -> list[Step]:
        """All steps, in order."""
        return [*self._data(), *self._training(), *self._evaluations(), self._report()]

    def _tokenizer_spec(self) -> str:
        given = self._sections.get("tokenizer")
        if given is None:
            raise UserError(f"{self._config}: tokenizer is missing; give a hub id, a path, or flags to train one with.")
        if isinstance(given, str):
            return given
        if not self._documents():
            raise UserError(
                f"{self._config}: tokenizer needs documents to be trained on; add corpus, or source under pack."
            )
        return str(self.scratch / "tokenizer")

    def _documents(self) -> list[str]:
        """Paths of the documents; none for C4 from the hub."""
        source = self._sections.get("pack", {}).get("source") or []
        if "corpus" in self._sections:
            if source:
                raise UserError(f"{self._config}: corpus and source in pack both choose the documents; keep one.")
            return [str(self.scratch / "corpus")]
        return [source] if isinstance(source, str) else list(source)

    def _check_flags(self) -> None:
        """Check names and kinds of all flags long before the trainers start, and find the size of the pack."""
        parsed: dict[str, Any] = {}
        trainers = [("pptrain", self._pptrain_flags()), *(("pretrain", self._pretrain_flags(c)) for c in CONDITIONS)]
        for phase, flags in trainers:
            with self._naming(phase):
                groups, _ = parse_flags(*GROUPS[phase], description="", argv=flags)
            parsed = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
        evaluate.parse(self._evaluate_flags(PPTRAIN))
        if not parsed["global_batch"]:
            raise UserError(f"{self._config}: global_batch is missing under pretrain; it decides the size of the pack.")
        self._seq_len: int = parsed["seq_len"]
        self._num_blocks: int = parsed["total_steps"] * parsed["global_batch"]  # what B reads

    def _data(self) -> list[Step]:
        splits = self._sections.get("splits", {})
        if missing := {"max_input_size", "max_lookahead", "seed"} - set(splits):
            raise UserError(f"{self._config}: splits: {', '.join(sorted(missing))} missing; they name the directory.")
        directory = split_directory(self.scratch, splits["max_input_size"], splits["max_lookahead"], splits["seed"])
        where = ["--scratch_dir", str(self.scratch)]
        steps = [self._tool("splits", "build_data_splits", directory, [*where, *self._flags("splits")])]
        if "corpus" in self._sections:
            corpus = self.scratch / "corpus"
            flags = ["corpus", "--out", str(corpus), *self._flags("corpus")]
            steps.append(self._tool("corpus", "fetch_assets", corpus, flags))
        if not isinstance(self._sections["tokenizer"], str):
            flags = ["--out", self._tokenizer, "--corpus", *self._documents()]
            flags += ["--extra", str(directory / split_file_name("mixin")), *self._flags("tokenizer")]
            steps.append(self._tool("tokenizer", "train_tokenizer", Path(self._tokenizer), flags))
        source = ["--source", *documents] if (documents := self._documents()) else []
        size = ["--seq_len", str(self._seq_len), "--num_blocks", str(self._num_blocks)]
        flags = [*where, "--tokenizer", self._tokenizer, *size, *source, *self._flags("pack", without=("source",))]
        steps.append(self._tool("pack", "build_pretrain", self.scratch / "data" / "c4_packed", flags))
        return steps

    def _training(self) -> list[Step]:
        first = self._trainer("pptrain", PPTRAIN, "pptrain", self._pptrain_flags(), self._check_training)
        return [
            first,
            *(self._trainer("pretrain", c.run, f"pretrain {c.title}", self._pretrain_flags(c)) for c in CONDITIONS),
        ]

    def _trainer(
        self, phase: str, run: str, title: str, flags: list[str], check: Callable[[], None] | None = None
    ) -> Step:
        directory = self.scratch / run
        return Step(title, shlex.join([phase, *flags]), self._launch(phase, flags), directory, directory, check)

    def _check_training(self) -> None:
        """Run the trainers' own checks before the first of them spends hours."""
        from ds_train.phases import pptrain, pretrain  # takes seconds

        world = World(0, 0, 1)
        pptrain.prepare(self._pptrain_flags(), world)
        for condition in CONDITIONS:
            if not condition.is_pretrained:  # its weights do not exist yet
                pretrain.prepare(self._pretrain_flags(condition), world)

    def _evaluations(self) -> list[Step]:
        runs = (PPTRAIN, *(condition.run for condition in CONDITIONS))
        flags = {run: self._evaluate_flags(run) for run in runs}
        return [
            Step(
                title=f"evaluate {run}",
                cache_key=shlex.join(["evaluate", *flags[run]]),
                command=self._launch("evaluate", flags[run]),
                product=evaluation_file(self.scratch, run),
            )
            for run in runs
        ]

    def _report(self) -> Step:
        runs = [*((condition.run, condition.title) for condition in CONDITIONS), (PPTRAIN, "pre-pretraining of A")]
        flags = [str(self.scratch / run) for run, _ in runs]
        flags += ["--names", *(title for _, title in runs)]
        flags += ["--evaluation", *(str(evaluation_file(self.scratch, run)) for run, _ in runs)]
        flags += ["--out", str(self.scratch / "report")]
        return self._tool("report", "plot_run", self.scratch / "report", flags, always_run=True)

    def _pptrain_flags(self) -> list[str]:
        return self._trainer_flags("pptrain", PPTRAIN, ())

    def _pretrain_flags(self, condition: Condition) -> list[str]:
        without: list[str] = []
        more = ["--pptrain_checkpoint", str(self.scratch / PPTRAIN) if condition.is_pretrained else "none"]
        if condition.is_pretrained:
            without += ["model_name", "init"]  # the weights determine the architecture
        if not condition.is_mixed:
            without += [name for name in self._sections.get("pretrain", {}) if name.startswith("mixin_")]
            more += ["--mixin_percent", "0"]
        return [*self._trainer_flags("pretrain", condition.run, without), *more]

    def _trainer_flags(self, phase: str, run: str, without: Sequence[str]) -> list[str]:
        own = ["--scratch_dir", str(self.scratch), "--run_name", run, "--tokenizer", self._tokenizer]
        known = flags_known_to(GROUPS[phase])
        alike = self._flags("training", without, known=known)
        return [*own, *alike, *self._flags(phase, without, known=known)]

    def _evaluate_flags(self, run: str) -> list[str]:
        where = [str(self.scratch / run), "--scratch_dir", str(self.scratch), "--split", "test"]
        return [*where, "--output", str(evaluation_file(self.scratch, run)), *self._flags("evaluate")]

    def _flags(self, section: str, without: Sequence[str] = (), known: Mapping[str, bool] | None = None) -> list[str]:
        values = {name: value for name, value in self._sections.get(section, {}).items() if name not in without}
        return flags_of(values, f"{self._config}: {section}", known)

    def _tool(self, title: str, module: str, product: Path, flags: list[str], always_run: bool = False) -> Step:
        command = [sys.executable, "-m", f"data_tools.{module}", *flags]
        return Step(title, shlex.join([module, *flags]), command, product, always_run=always_run)

    def _launch(self, phase: str, flags: list[str]) -> list[str]:
        return [*(part.replace("{}", phase) for part in self._launcher), *flags]


def _section(config: Path, name: str, value: Any) -> Any:
    """Check a section: flags (perhaps none), or for the tokenizer also a name."""
    if name not in _SECTIONS:
        hint = did_you_mean(name, _SECTIONS, f"; expected one of {', '.join(_SECTIONS)}.")
        raise UserError(f"{config}: {name!r} is no section{hint}")
    if name == "tokenizer" and isinstance(value, str):
        return value
    if not isinstance(value or {}, dict):
        raise UserError(f"{config}: {name} is {value!r}, expected flags, one per line.")
    if twice := sorted(_SET_HERE & set(value or {})):
        raise UserError(f"{config}: {name}: {', '.join(twice)} is set by the experiment itself; leave it out.")
    return value or {}
