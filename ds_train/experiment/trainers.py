"""The flags of each run: what all share, what its condition changes, and what follows from a pre-pretraining."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import Any

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import UserError
from data_tools.base.text_table import round_up
from ds_train import evaluate
from ds_train.config.deepspeed_json import default_json
from ds_train.config.flags import flags_known_to, parse_flags
from ds_train.config.trainer_flags import GROUPS
from ds_train.experiment.conditions import BUILT_IN, OF_MIXTURE, OF_MODEL, PPTRAIN, Condition
from ds_train.experiment.file import ExperimentFile
from ds_train.experiment.sizes import Spent

PRETRAIN = "pretrain"
_LIMITS = ("max_steps", "max_tokens", "max_pflops")


@dataclass(frozen=True)
class Pack:
    """Packed blocks of one half of the documents; the second one is for first phases on C4.

    Attributes:
        num_blocks: 0 while it is not known.
    """

    name: str
    half: str
    num_blocks: int


class Trainers:
    """Flags of pptrain, pretrain and evaluate as arguments, for a condition and a seed.

    Args:
        directory: of all data and runs.
        spent: what the pre-pretraining of a condition and a seed took; None before it has ended.

    Raises:
        UserError: a flag is unknown, or has a value of the wrong kind.
    """

    def __init__(self, file: ExperimentFile, directory: Path, spent: Callable[[Condition, int], Spent | None]) -> None:
        self._file, self._directory, self.spent = file, directory, spent
        self._known = {**BUILT_IN, **file.conditions}
        for phase in (PPTRAIN, PRETRAIN):
            known = flags_known_to(GROUPS[phase])
            for section in ("training", phase):
                file.arguments(file.section(section), section, known)
            for condition in file.conditions.values():
                file.arguments(condition.flags.get(phase, {}), f"condition {condition.name}: {phase}", known)
        for flag, values in file.vary.items():
            for value in values:
                file.arguments({flag: value}, "vary", flags_known_to(GROUPS[PRETRAIN]))
        evaluate.parse(self.evaluate("A", 0))
        self._parsed(PPTRAIN)
        shared = self._parsed(PRETRAIN)
        if not shared["global_batch"]:
            raise UserError(f"{file.path}: global_batch is missing under pretrain; it decides the size of the pack.")
        if shared["total_steps"] <= shared["eval_every"] and not shared["eval_at"]:
            raise UserError(
                f"{file.path}: pretrain: eval_every {shared['eval_every']} gives one evaluation in "
                f"{shared['total_steps']} steps, and curves need two; choose a smaller one."
            )
        self.seq_len: int = shared["seq_len"]
        self._defaults = {name: shared[name] for name in ("total_steps", "global_batch")}
        self.pack = Pack("c4_packed", "first", shared["total_steps"] * shared["global_batch"])

    def replayed(self, condition: Condition) -> Condition | None:
        """The condition whose pre-pretraining that of this one replays, seed by seed; None without any, or for a path.

        Raises:
            UserError: it is none or the same pre-pretraining, replays another one itself, or does not exist.
        """
        given = self._values(PPTRAIN, condition).get("replay_run")
        if given is None:
            return None
        other = self._known.get(str(given))
        if other is None and not Path(str(given)).exists():
            hint = did_you_mean(str(given), self._known, f"; there are {', '.join(self._known)}.")
            raise UserError(
                f"{self._file.path}: condition {condition.name}: replay_run is {given}: no condition or run{hint}"
            )
        is_other = other and other.first == PPTRAIN and other.pptrain != condition.pptrain
        if other and not (is_other and "replay_run" not in self._values(PPTRAIN, other)):
            raise UserError(
                f"{self._file.path}: condition {condition.name}: replay_run {other.name} is no pre-pretraining that it "
                "can replay; name a condition with another one, which replays none."
            )
        return other

    def pptrain(self, condition: Condition, seed: int) -> list[str]:
        values = self._values(PPTRAIN, condition)
        if other := self.replayed(condition):
            if "max_steps" not in condition.flags.get(PPTRAIN, {}):  # it is as long as the other
                values.pop("max_steps", None)
            values["replay_run"] = self.run(other.pptrain, seed)
        return self._arguments(PPTRAIN, values | self._own(condition.pptrain, seed))

    def c4_phase(self, condition: Condition, seed: int) -> list[str]:
        """As many tokens of C4 as the pre-pretraining had, with its rate, warm-up and batch."""
        known = flags_known_to(GROUPS[PRETRAIN])
        values = {name: value for name, value in self._values(PPTRAIN, condition).items() if name in known}
        values = {"deepspeed_config": str(default_json(PPTRAIN))} | _without(values, _LIMITS)
        values |= {"seq_len": self.seq_len, "pptrain_checkpoint": "none", "mixin_percent": 0, "c4_order": "seed"}
        if spent := self.spent(condition, seed):
            steps, pack = spent.steps_on_c4(self.seq_len), self.c4_phase_pack(condition, seed)
            values |= {"global_batch": spent.global_batch, "total_steps": steps, "pack_dir": self.pack_dir(pack)}
        return self._arguments(PRETRAIN, values | self._own(condition.first_phase, seed))

    def pretrain(self, condition: Condition, seed: int) -> list[str]:
        values = {"c4_order": "seed", "pptrain_checkpoint": "none"} | self._values(PRETRAIN, condition)
        if condition.first_phase:  # its weights determine the architecture
            values = _without(values, OF_MODEL)
            values["pptrain_checkpoint"] = self.run(condition.first_phase, seed)
        if not condition.is_mixed:
            values = _without(values, [name for name in values if name.startswith(OF_MIXTURE)]) | {"mixin_percent": 0}
        if condition.has_total_compute:
            values = _without(values, ("total_steps", *_LIMITS))
            if self.spent(condition, seed):
                values["total_steps"] = self.total_steps(condition, self.spent(condition, seed))
        pack = self.pretrain_pack(condition, seed)
        if pack != self.pack:
            values["pack_dir"] = self.pack_dir(pack)
        return self._arguments(PRETRAIN, values | self._own(condition.name, seed))

    def evaluate(self, name: str, seed: int) -> list[str]:
        """The last checkpoint of a run, on the test split."""
        run = [str(self.run(name, seed)), "--scratch_dir", str(self._directory), "--split", "test"]
        flags = self._file.arguments(self._file.section("evaluate"), "evaluate")
        return [*run, "--output", str(self.evaluation_file(name, seed)), *flags]

    def run(self, name: str, seed: int) -> Path:
        """The run directory of a condition or a first phase."""
        return self._directory / name / f"seed_{seed}"

    def evaluation_file(self, name: str, seed: int) -> Path:
        return self._directory / "evaluations" / f"{name.replace('/', '_')}_seed_{seed}.json"

    def total_steps(self, condition: Condition, spent: Spent | None) -> float:
        """Steps of pretrain, for a condition whose pre-pretraining took, or takes at most, this."""
        own = self._defaults | self._values(PRETRAIN, condition)
        if not condition.has_total_compute:
            return own["total_steps"]
        return own["total_steps"] + (spent.steps_of_its_compute(own["global_batch"], self.seq_len) if spent else inf)

    def pretrain_pack(self, condition: Condition, seed: int) -> Pack:
        """The pack that a condition reads: the shared one, or a longer one that begins with the same blocks."""
        own = self._defaults | self._values(PRETRAIN, condition)
        steps = self.total_steps(condition, self.spent(condition, seed))
        num_blocks = 0 if steps == inf else int(steps) * int(own["global_batch"])
        return self.pack if 0 < num_blocks <= self.pack.num_blocks else _sized_pack("c4_packed", "first", num_blocks)

    def c4_phase_pack(self, condition: Condition, seed: int) -> Pack:
        """The pack of a first phase on C4, of documents that are in no other."""
        spent = self.spent(condition, seed)
        num_blocks = int(spent.steps_on_c4(self.seq_len)) * spent.global_batch if spent else 0
        return _sized_pack("c4_second", "second", num_blocks)

    def pack_dir(self, pack: Pack) -> Path:
        return self._directory / "data" / pack.name

    def _values(self, phase: str, condition: Condition | None = None) -> dict[str, Any]:
        own = condition.flags.get(phase, {}) if condition else {}
        return {**self._file.section("training"), **self._file.section(phase), **own}

    def _own(self, name: str, seed: int) -> dict[str, Any]:
        """Flags that place a run."""
        return {
            "scratch_dir": self._directory, "run_name": f"{name}/seed_{seed}", "seed": seed,
            "tokenizer": self._file.tokenizer,
        }  # fmt: skip

    def _arguments(self, phase: str, values: dict[str, Any]) -> list[str]:
        return self._file.arguments(values, phase, flags_known_to(GROUPS[phase]))

    def _parsed(self, phase: str) -> dict[str, Any]:
        """Values and defaults of the flags that all conditions share."""
        argv = self._arguments(phase, {"scratch_dir": self._directory} | self._values(phase))
        with self._file.naming(phase):
            groups, _ = parse_flags(*GROUPS[phase], description="", argv=argv)
        return {item.name: getattr(group, item.name) for group in groups for item in fields(group)}


def _sized_pack(name: str, half: str, num_blocks: int) -> Pack:
    num_blocks = round_up(num_blocks)  # runs of similar length share a pack
    return Pack(f"{name}_{num_blocks}" if num_blocks else name + "_…", half, num_blocks)


def _without(values: Mapping[str, Any], names: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
