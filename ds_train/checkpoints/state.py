"""Everything that a run needs to continue: one typed dataclass, stored in DeepSpeed's ``client_state``."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

from annotated_types import Interval

from data_tools.base.errors import UserError, first_line
from data_tools.base.records import Natural, Positive, as_record
from data_tools.samples.samplers import Cursor

CLIENT_STATE_KEY = "ds_train"  # one key of our own: DeepSpeed drops client keys that collide with its own
PFLOP = 10**15
INITIAL_WEIGHTS = "initial_weights"  # field of the state, key of a launch, name for --accept_change
STATE_FILE = "state.json"  # the same for people and tools, in each step directory
_TENSORS = ("rng",)  # fields that are no plain JSON
_ADDED = {
    "flops",
    "gpu_hours",
    "stage_steps",
    "initial_weights",
    "branched_from",
}  # fields that checkpoints of version 0.1 lack; the default is their former value


Flag = Annotated[int, Interval(ge=0, le=1)]
Flops = Annotated[int, Interval(ge=0, le=10**30)]
Hours = Annotated[float, Interval(ge=0)]


@dataclass(frozen=True)
class InitialWeights:
    """What the weights of a run started from, as it was when the run began.

    Attributes:
        path: a step directory, a Hugging Face directory or a hub id; empty for random weights.
        run: directory of the run that a step directory belongs to.
        step, stage: of that checkpoint; the stage is 0 without a curriculum.
        hash: of the content of all its files; of a hub id the commit.
    """

    path: str = ""
    run: str = ""
    step: Natural | None = None
    stage: Natural | None = None
    hash: str = ""

    def is_same(self, other: "InitialWeights") -> bool:
        """Whether the content is the same, wherever it is."""
        return self.hash == other.hash and bool(self.hash or self.path == other.path)

    def __str__(self) -> str:
        return f"{self.path}, at stage {self.stage}" if self.stage else self.path or "random weights"


@dataclass
class TrainState:
    """The resumable state of a run: plain Python values and tensors only, so that any torch.load policy reads it."""

    seed: int
    world_size: Positive
    micro_batch: Positive
    grad_accum: Positive
    global_batch: Positive
    zero_stage: Annotated[int, Interval(ge=0, le=3)]
    precision: str  # bf16, fp16 or fp32
    step: Natural = 0  # optimizer steps done
    consumed_index: Natural = 0
    stage: Natural = 0
    c4_block_idx: Natural = 0
    mixin_idx: Natural = 0
    stage_steps: Natural = 0  # optimizer steps since the last promotion
    window: list[Flag] = field(default_factory=list)  # accuracy flags since the last promotion, newest last
    evaluation_pending: bool = False  # the evaluation of this step was interrupted, and is repeated on resume
    finished: bool = False  # the phase is at its end: the last stage is mastered, or total_steps are done
    tokens: Natural = 0  # real target tokens trained on
    mixin_tokens: Natural = 0  # those of them that were synthetic
    overflows: Natural = 0  # candidates of consumed samples that were longer than seq_len
    skipped_steps: Natural = 0  # steps whose loss or gradient was not finite: samples consumed, nothing updated
    flops: Flops = 0  # of forward and backward, as model/footprint.py counts them
    gpu_hours: Hours = field(default=0.0, compare=False)  # wall-clock hours of training × devices
    initial_weights: InitialWeights | None = None  # None: of a version that did not record them
    branched_from: InitialWeights | None = None  # checkpoint of another run whose state this one continues
    ledger: str = ""  # rolling hash over (source, index, stage) of every consumed sample
    rng: list[dict[str, Any]] = field(default_factory=list)  # per rank, gathered before each save
    fingerprints: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.consumed_index, self.stage, self.c4_block_idx, self.mixin_idx)

    def move_to(self, cursor: Cursor) -> None:
        """Set the data position, e.g. to the cursor after a consumed batch."""
        self.consumed_index, self.stage = cursor.consumed_index, cursor.stage
        self.c4_block_idx, self.mixin_idx = cursor.c4_block_idx, cursor.mixin_idx

    def to_json(self) -> str:
        """The state without the random states, a line for each field."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _TENSORS}
        texts = {name: json.dumps(value, ensure_ascii=False, default=vars) for name, value in values.items()}
        return "{\n" + ",\n".join(f"  {json.dumps(name)}: {text}" for name, text in texts.items()) + "\n}\n"

    def to_client_state(self) -> dict[str, Any]:
        return {CLIENT_STATE_KEY: asdict(self)}

    def check_num_files(self, num_model: int, num_optimizer: int, origin: str) -> None:
        """Refuse a checkpoint that has another number of files of a kind than its ranks wrote."""
        expected = self.world_size if self.zero_stage == 3 else 1, self.world_size if self.zero_stage else 0
        if (num_model, num_optimizer) != expected:
            raise UserError(
                f"{origin} has {num_model} files of model states and {num_optimizer} of optimizer states; ZeRO "
                f"{self.zero_stage} on {self.world_size} ranks wrote {expected[0]} and {expected[1]}. Restore the "
                "missing files, or use another checkpoint."
            )

    @classmethod
    def from_client_state(cls, client_state: dict[str, Any], origin: str) -> "TrainState":
        """Rebuild the state of a checkpoint.

        Raises:
            UserError: the checkpoint was not written by this program, or by a version with other fields.
        """
        saved = client_state.get(CLIENT_STATE_KEY) if isinstance(client_state, dict) else None
        known = {f.name for f in fields(cls)}
        if not isinstance(saved, dict) or set(saved) | _ADDED != known:
            found = sorted((set(saved) | _ADDED) ^ known) if isinstance(saved, dict) else "no state of this program"
            problem = f"differs in: {found}"
        else:
            try:
                return as_record(cls, saved)
            except ValueError as error:
                problem = str(error)
        raise UserError(
            f"{origin}: its training state cannot be read ({problem}). "
            "Resume with the version of ds-train that wrote it, or start anew with --resume none."
        )


def mapped_file(path: Path, classes: Collection[type] = ()) -> Any:
    """The content of a file that DeepSpeed saved; tensors stay on disk until they are read.

    Args:
        classes: that it may hold objects of, beside tensors and plain values.

    Raises:
        UserError: it holds others. A file can make a program run anything to build its objects.
    """
    import torch  # takes seconds

    try:
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain values, which no checkpoint of this program does: "
            f"{first_line(error)} Nothing of it was run; do not use the file."
        ) from None
