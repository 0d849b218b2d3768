"""What the benchmarks share: tables, data to train on, trainers and the reference as processes, medians in pairs."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from data_tools import build_data_splits, build_pretrain, fetch_assets
from data_tools.base.errors import UserError
from tests.support.launching import REPOSITORY, environment, read_log

NUM_CORES = len(os.sched_getaffinity(0))
Row = dict[str, Any]


def has_gpu() -> bool:
    return torch.cuda.is_available()


def describe_machine() -> str:
    gpu = torch.cuda.get_device_name() if has_gpu() else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers", "tokenizers"))
    return f"{NUM_CORES} cores, {gpu}; {versions}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table with its machine; numbers are shown with what digits they need."""
    cells = [list(columns), *([_shown(value) for value in row] for row in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(columns))]
    print(f"\n{title}\n({describe_machine()})")
    for row in cells:
        padded = [
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(padded).rstrip())
    sys.stdout.flush()


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def rounds_table(by_round: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Rows "round 1", …, and "median" (of each column)."""
    rows = [[f"round {number}", *values] for number, values in enumerate(by_round, start=1)]
    return [*rows, ["median", *(median(values) for values in zip(*by_round, strict=True))]]


def parser(doc: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """A command line with the module's docstring as its help, and ``--rounds`` where a default is given."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds, help=f"repetitions, one after another ({rounds})")
    return made


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A temporary scratch directory with the GPT-NeoX tokenizer in ``tokenizer/``."""
    with tempfile.TemporaryDirectory(prefix="ds_train_benchmark_") as directory:
        with redirect_stdout(sys.stderr):
            fetch_assets.main(["tokenizer", "--out", f"{directory}/tokenizer"])
        yield Path(directory)


def build_splits(scratch: Path, seq_len: int = 2048, mixin_size: int = 4) -> None:
    """Small splits whose longest examples fit ``seq_len``: lookahead seq_len / 32, input size 6 × that."""
    max_lookahead = seq_len // 32
    with redirect_stdout(sys.stderr):
        build_data_splits.main(
            f"--scratch_dir {scratch} --max_input_size {6 * max_lookahead} --max_lookahead {max_lookahead} "
            f"--eval_size 4 --test_size 4 --mixin_size {mixin_size}".split()
        )


def build_pack(scratch: Path, seq_len: int, num_blocks: int) -> None:
    """Blocks of film reviews. ``num_blocks`` of 2,049 tokens may be 3,700 at most."""
    documents = num_blocks * (seq_len + 1) // 200 + 200  # reviews have 300 tokens on average
    with redirect_stdout(sys.stderr):
        fetch_assets.main(["corpus", "--out", f"{scratch}/corpus", "--documents", str(documents)])
        build_pretrain.main(
            f"--scratch_dir {scratch} --source {scratch}/corpus --tokenizer {scratch}/tokenizer --seq_len {seq_len} "
            f"--num_blocks {num_blocks} --val_blocks 0 --shuffle_buffer 1000".split()
        )


def process_environment(on_gpu: bool = False) -> dict[str, str]:
    """Variables of a measured process: all cores' threads, and the GPU only where it is asked for."""
    variables = {**environment(), "OMP_NUM_THREADS": str(NUM_CORES), "TQDM_DISABLE": "1"}
    if on_gpu:
        del variables["DS_ACCELERATOR"], variables["CUDA_VISIBLE_DEVICES"]
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            variables["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
    return variables


def run_python(arguments: Sequence[Any], on_gpu: bool = False) -> str:
    """Run Python in the repository; its standard output. Ends the benchmark with the output if it fails."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=REPOSITORY, env=process_environment(on_gpu), text=True,
        capture_output=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{arguments[0]} failed\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def run_trainer(phase: str, scratch: Path, flags: Sequence[Any], on_gpu: bool = False) -> list[Row]:
    """A fresh run of one rank through its command line; the rows of train.jsonl. Its directory is removed."""
    shutil.rmtree(scratch / phase, ignore_errors=True)
    own = ["--log_every", 1, "--eval_subset_size", 1]
    if phase == "pretrain":
        own += ["--pptrain_checkpoint", "none", "--allow_repeat"]
    run_python([f"ds_train/{phase}.py", "--scratch_dir", scratch, *own, *flags], on_gpu)
    rows = read_log(scratch / phase)
    shutil.rmtree(scratch / phase)
    return rows


def run_reference(phase: str, scratch: Path, flags: Sequence[Any], on_gpu: bool = False) -> list[Row]:
    """The rows that the reference prints."""
    output = run_python(["-m", "tests.benchmarks.reference", phase, "--scratch_dir", scratch, *flags], on_gpu)
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def step_rates(rows: Sequence[Row], dropped: int) -> list[float]:
    """Useful tokens a second of each step after the first ``dropped``."""
    return [
        (after["tokens"] - before["tokens"]) / (after["timestamp"] - before["timestamp"])
        for before, after in pairwise(rows[dropped - 1 :])
    ]


@dataclass(frozen=True)
class Comparison:
    """Ours against the reference over the same steps.

    Attributes:
        ours, reference: median useful tokens a second.
        first_loss_difference: before any update: the same work, to the precision of the forward.
        loss_difference: the largest over all steps.
        data_wait: median share of our steps spent waiting for data.
        padding: share of the reference's positions that are padding.
        ours_gib, reference_gib: peak memory of the process; on a GPU, the tensors on it.
    """

    ours: float
    reference: float
    first_loss_difference: float
    loss_difference: float
    data_wait: float
    padding: float
    ours_gib: float
    reference_gib: float

    COLUMNS = (
        "ours, tokens/s", "reference", "ratio", "loss difference, step 1", "largest", "our data wait", "its padding",
        "our GiB", "its GiB",
    )  # fmt: skip

    @property
    def values(self) -> list[float]:
        """In the order of `COLUMNS`."""
        ratio = self.ours / self.reference
        losses = self.first_loss_difference, self.loss_difference
        rest = self.data_wait, self.padding, self.ours_gib, self.reference_gib
        return [self.ours, self.reference, ratio, *losses, *rest]


def compare_rows(ours: Sequence[Row], reference: Sequence[Row], dropped: int) -> Comparison:
    """What two runs say of each other; rates leave out the first ``dropped`` steps.

    Raises:
        UserError: they did not train on the same number of tokens, so they did different work.
    """
    if [row["tokens"] for row in ours] != [row["tokens"] for row in reference]:
        raise UserError("ours and the reference trained on different tokens: their speeds say nothing")
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(ours, reference, strict=True)]
    return Comparison(
        ours=median(step_rates(ours, dropped)),
        reference=median(step_rates(reference, dropped)),
        first_loss_difference=differences[0],
        loss_difference=max(differences),
        data_wait=median(row["data_wait_fraction"] for row in ours[dropped:]),
        padding=1 - reference[-1]["tokens"] / reference[-1]["positions"],
        ours_gib=max(row["peak_memory_gb"] for row in ours),
        reference_gib=max(row["peak_memory_gb"] for row in reference),
    )


def compare_phase(
    phase: str,
    scratch: Path,
    ours_flags: Sequence[Any],
    reference_flags: Sequence[Any],
    rounds: int,
    *,
    on_gpu: bool = False,
    dropped: int = 2,
) -> list[Comparison]:
    """Train ours and the reference in turns, ``rounds`` times."""
    compared = []
    for number in range(rounds):
        ours = run_trainer(phase, scratch, ours_flags, on_gpu)
        reference = run_reference(phase, scratch, reference_flags, on_gpu)
        compared.append(compare_rows(ours, reference, dropped))
        print(f"{phase}: round {number + 1} of {rounds} done", file=sys.stderr, flush=True)
    return compared


def print_comparison(title: str, compared: Sequence[Comparison]) -> None:
    print_table(title, ["", *Comparison.COLUMNS], rounds_table([each.values for each in compared]))


def seconds_each(clock: Callable[[], float], work: Callable[[], Any], times: int) -> list[float]:
    """How long each of ``times`` calls takes."""
    taken = []
    for _ in range(times):
        started = clock()
        work()
        taken.append(clock() - started)
    return taken


def peak_memory_bytes() -> int:
    """Peak of the tensors on the GPU, or without one the peak resident set since this program was started."""
    if has_gpu():
        return torch.cuda.max_memory_allocated()
    return resident_peak_bytes("self")


def resident_peak_bytes(process: int | str) -> int:
    """Peak resident set of a running process since its program was started."""
    # Not getrusage: its maximum begins with the size of the process that started this one.
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
