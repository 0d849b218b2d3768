"""Build the data splits: eval, test and mixin, at full difficulty and pairwise disjoint by prompt.

    python data_tools/build_data_splits.py --scratch_dir DIR --max_input_size 384 --max_lookahead 64

The bytes written are a function of the parameters and the generator, not of the number of cores. The directory
appears whole, at the end.
"""

import argparse
import hashlib
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    # Run as a script: put the repository in place of this directory on the import path.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from data_tools.base.command_line import CommandParser, any_seed, positive
from data_tools.base.errors import UserError, reason_of, run_command
from data_tools.base.files import whole_directory, whole_file, write_json
from data_tools.base.foreign import foreign_note, read_object
from data_tools.base.processes import num_cores, worker_processes
from data_tools.search.flags import add_generator_flags, generator_choice
from data_tools.search.generator import MAX_ATTEMPTS, ExampleGenerator
from data_tools.search.splits import (
    META_NAME,
    SPLIT_NAMES,
    SplitFile,
    SplitMeta,
    prompt_digest,
    row_line,
    split_directory,
    split_file_name,
)

_ALPHA = 1.0
_CHUNK_SIZE = 50  # examples handed to a worker at a time


def main(argv: list[str] | None = None) -> None:
    """The command; see ``--help``."""
    args = parse(argv)
    directory = split_directory(args.scratch_dir, args.max_input_size, args.max_lookahead, args.seed)
    sources = {name: _source(args, name) for name in SPLIT_NAMES}
    source = sources[SPLIT_NAMES[0]]
    print(f"{directory}: {source.described_sizes()}")
    if directory.exists() and not read_object(directory / META_NAME).keys() >= {"generator_name", "files"}:
        note = foreign_note(directory) or f"it has no {META_NAME} of this program"
        raise UserError(f"{directory} was not written by this program: {note}. Give another --seed or --scratch_dir.")
    if directory.exists() and not args.overwrite:
        raise UserError(f"{directory} exists; give --overwrite to replace it, or another --seed")
    identity = source.identity()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--scratch_dir: cannot write to {directory.parent} ({reason_of(error)})") from error
    # Write all splits; a prompt that one has used is not used again. meta.json comes last.
    began = time.perf_counter()
    with whole_directory(directory) as partial_directory, worker_processes(args.workers) as executor:
        files: dict[str, SplitFile] = {}
        used: set[bytes] = set()
        for name in SPLIT_NAMES:
            path = partial_directory / split_file_name(name)
            files[path.name] = _write_split(executor, sources[name], getattr(args, f"{name}_size"), path, used)
        meta = SplitMeta(
            max_input_size=args.max_input_size,
            max_lookahead=args.max_lookahead,
            alpha=_ALPHA,
            stage=args.max_lookahead,
            seed=args.seed,
            generator_name=source.name,
            generator_version=identity.version,
            files=files,
            generator_task=source.choice.task,
            generator_options=dict(source.choice.options),
            generator_examples=identity.examples,
        )
        write_json(partial_directory / META_NAME, meta.to_json())
    print(f"{len(used)} examples in {time.perf_counter() - began:.1f} s")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--scratch_dir", required=True, help="directory of all data and runs")
    parser.add_argument("--max_input_size", type=positive, default=384, help="symbolic size of a problem (default 384)")
    parser.add_argument("--max_lookahead", type=positive, default=64, help="stages of the curriculum (default 64)")
    parser.add_argument("--seed", type=any_seed, default=12345, help="seed of all problems")
    parser.add_argument("--eval_size", type=positive, default=2_000, help="examples of eval.jsonl")
    parser.add_argument("--test_size", type=positive, default=5_000, help="examples of test.jsonl")
    parser.add_argument("--mixin_size", type=positive, default=50_000, help="examples of mixin.jsonl")
    add_generator_flags(parser)
    parser.add_argument(
        "--workers",
        type=positive,
        default=num_cores(),
        help="worker processes (default: all cores); the result does not depend on it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace splits of the same parameters")
    return parser.parse_args(argv)


def _source(args: argparse.Namespace, name: str) -> ExampleGenerator:
    return ExampleGenerator(
        generator_choice(args),
        max_input_size=args.max_input_size,
        max_lookahead=args.max_lookahead,
        seed=args.seed,
        purpose=f"split/{name}",
    )


def _write_split(
    executor: ProcessPoolExecutor, source: ExampleGenerator, size: int, path: Path, used: set[bytes]
) -> SplitFile:
    """Write one split. Its prompts join ``used``; the next attempt replaces one that is already there."""
    digest = hashlib.sha256()
    num_bytes = 0
    rows = executor.map(partial(_make_row, source), range(size), chunksize=_CHUNK_SIZE)
    with whole_file(path) as file, tqdm(total=size, desc=path.stem, unit=" examples") as bar:
        for index, (prompt, line) in enumerate(rows):
            attempt = 0
            while prompt in used:
                attempt += 1
                if attempt == MAX_ATTEMPTS:
                    raise UserError(
                        f"{source.purpose}: {MAX_ATTEMPTS} attempts at example {index} all repeat earlier prompts; "
                        f"generator {source.name} must give different examples for different seeds, and sizes "
                        f"(max_input_size {source.max_input_size}) must allow that many"
                    )
                prompt, line = executor.submit(_make_row, source, index, attempt).result()
            used.add(prompt)
            file.write(line)
            digest.update(line)
            num_bytes += len(line)
            bar.update()
    return SplitFile(size, num_bytes, digest.hexdigest())


def _make_row(source: ExampleGenerator, index: int, attempt: int = 0) -> tuple[bytes, bytes]:
    """Make one example, in a worker: the digest of its prompt, and its line."""
    stage = source.max_lookahead
    example = source.example(index, stage, attempt)
    return prompt_digest(example.input_text), row_line(example, alpha=_ALPHA, stage=stage, seed=source.seed)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing half-written is left
    run_command(main)
