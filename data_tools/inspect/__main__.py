"""Show the data: samples of splits, of the training streams and of packed blocks, and the lengths of problems.

    python -m data_tools.inspect split --scratch_dir DIR --split test --index 0 --count 3
    python -m data_tools.inspect stream --scratch_dir DIR --index 12345 --stage 3
    python -m data_tools.inspect mixture --run DIR/pretrain --index 640
    python -m data_tools.inspect shards --scratch_dir DIR --index 17
    python -m data_tools.inspect lengths --max_input_size 768 --max_lookahead 128 --seq_len 2048 4096

Training reads its samples with the same code, and the defaults are the trainers'. Output has colours on a terminal, and
with ``--color always | less -R`` in a pager. The variable COLUMNS sets the width.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path

from data_tools.base.command_line import CommandParser, any_seed, fraction, length, natural, positive
from data_tools.base.errors import run_command
from data_tools.inspect.lengths import length_lines
from data_tools.inspect.samples import mixture_lines, shards_lines, split_lines, stream_lines
from data_tools.inspect.token_view import PARTS
from data_tools.runs.settings import DEFAULT_TOKENIZER, flags_of_run
from data_tools.search.flags import add_generator_flags
from data_tools.search.splits import SPLIT_NAMES

_PHASES = {"stream": "pptrain", "mixture": "pretrain"}  # whose samples they show
_OF_RUNS = "that of the runs in scratch_dir or of its pack, without any "


def main(argv: list[str] | None = None) -> None:
    """The command; see ``--help``."""
    args = _parse(argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal with a small character set shows ? instead
    for line in args.lines(args):
        print(line)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, lines, add_flags, text in _COMMANDS:
        command = commands.add_parser(name, help=text, description=f"Shows {text}.")
        command.set_defaults(lines=lines)
        add_flags(command)
    args = parser.parse_args(argv)
    if getattr(args, "run", None):  # its settings become the defaults
        of_run = flags_of_run(args.run, _PHASES.get(args.command))
        commands.choices[args.command].set_defaults(**{name: of_run[name] for name in vars(args) if name in of_run})
        args = parser.parse_args(argv)
    return args


def _split_flags(parser: CommandParser) -> None:
    parser.add_argument("--split", choices=SPLIT_NAMES, default="eval", help="which split (default eval)")
    _pick_flags(parser, "row")
    _splits_flags(parser)
    _tokenizer_flag(parser, _OF_RUNS)
    parser.add_argument(
        "--seq_len", type=length, default=2048, help="longest row, in tokens; longer ones are marked (default 2048)"
    )
    _mixin_loss_flag(parser)
    _view_flags(parser)


def _stream_flags(parser: CommandParser) -> None:
    _pick_flags(parser, "sample of the run")
    parser.add_argument("--stage", type=positive, default=1, help="curriculum stage, 1 … max_lookahead (default 1)")
    _seed_flag(parser)
    _splits_flags(parser)
    _size_flags(parser, "the splits', or without splits ")
    _tokenizer_flag(parser, _OF_RUNS)
    parser.add_argument(
        "--seq_len", type=length, default=2048, help="longest sample, in tokens; longer ones are skipped (default 2048)"
    )
    parser.add_argument(
        "--train_answer", choices=("first", "random"), default="first", help="answer that is trained on (default first)"
    )
    parser.add_argument(
        "--accuracy", choices=("any", "first"), default="any", help="answers that are scored (default any)"
    )
    parser.add_argument(
        "--loss", choices=("weighted", "answer", "lm"), default="weighted", help="targets that weigh (default weighted)"
    )
    text = "shuffled: each two samples swap their answers (default valid)"
    parser.add_argument("--answers", choices=("valid", "shuffled"), default="valid", help=text)
    _view_flags(parser)


def _mixture_flags(parser: CommandParser) -> None:
    _pick_flags(parser, "sample of the run, over all ranks")
    parser.add_argument("--blocks", action="store_true", help="--index counts synthetic blocks ('mixin N' in messages)")
    _seed_flag(parser)
    _splits_flags(parser)
    _pack_flags(parser)
    for name, default, text in (
        ("total_steps", 10_000, "optimizer steps of the run"),
        ("global_batch", 32, "samples per optimizer step"),
    ):
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"{text} (default {default})")
    parser.add_argument("--packs", nargs="+", help="named packs with their shares, c4=0.9 code=0.1")
    text = "blocks in the order of each pack, or in one that the seed decides (default pack)"
    parser.add_argument("--c4_order", choices=("pack", "seed"), default="pack", help=text)
    parser.add_argument(
        "--mixin_percent", type=fraction, default=0.02, help="synthetic share of tokens, a fraction (default 0.02)"
    )
    schedules = ("constant", "linear", "cosine", "exponential")
    parser.add_argument(
        "--mixin_schedule",
        choices=schedules,
        default="constant",
        help="how the share changes over the run (default constant)",
    )
    parser.add_argument("--mixin_end", type=fraction, help="share that the schedule ends at (all but constant)")
    text = "examples of mixin.jsonl, or fresh ones of the splits' generator (default table)"
    parser.add_argument("--mixin_source", choices=("table", "generator"), default="table", help=text)
    parser.add_argument(
        "--mixin_pack",
        choices=("packed", "single"),
        default="packed",
        help="examples per block: as many as fit, or one (default packed)",
    )
    _mixin_loss_flag(parser)
    _view_flags(parser)


def _shards_flags(parser: CommandParser) -> None:
    _pick_flags(parser, "block")
    parser.add_argument("--validation", action="store_true", help="blocks of validation.bin")
    parser.add_argument("--scratch_dir", type=Path, help="directory of all data and runs")
    _pack_flags(parser)
    _view_flags(parser, PARTS[:2])


def _lengths_flags(parser: CommandParser) -> None:
    _size_flags(parser, "")
    parser.add_argument(
        "--seq_len",
        type=length,
        nargs="+",
        default=[2048],
        help="one or more sequence lengths to compare (default 2048)",
    )
    parser.add_argument("--stages", type=positive, nargs="+", help="stages (default: five from first to last)")
    parser.add_argument(
        "--num_problems", type=positive, default=1000, help="number of problems per stage (default 1000)"
    )
    _seed_flag(parser)
    _tokenizer_flag(parser)


def _pick_flags(parser: CommandParser, what: str) -> None:
    parser.add_argument("--index", type=natural, default=0, help=f"first {what}, from 0 (default 0)")
    parser.add_argument("--count", type=positive, default=1, help="number of samples (default 1)")


def _seed_flag(parser: CommandParser) -> None:
    parser.add_argument("--seed", type=any_seed, default=1337, help="seed of the run (default 1337)")


def _splits_flags(parser: CommandParser) -> None:
    parser.add_argument("--run", type=Path, help="run directory, whose settings are the defaults of all flags")
    parser.add_argument("--scratch_dir", type=Path, help="directory of all data and runs")
    parser.add_argument("--data_dir", type=Path, help="directory of splits (default: the only one in scratch_dir)")


def _size_flags(parser: CommandParser, where: str) -> None:
    text = "size budget of a problem in symbols"
    parser.add_argument("--max_input_size", type=positive, help=f"{text} (default: {where}384)")
    text = "lookahead at the last stage, and number of stages"
    parser.add_argument("--max_lookahead", type=positive, help=f"{text} (default: {where}64)")
    add_generator_flags(parser, where)


def _tokenizer_flag(parser: CommandParser, where: str = "") -> None:
    text = f"hub id, directory or tokenizer.json (default: {where}{DEFAULT_TOKENIZER})"
    parser.add_argument("--tokenizer", help=text)


def _pack_flags(parser: CommandParser) -> None:
    parser.add_argument("--pack_dir", type=Path, help="packed blocks (default: scratch_dir/data/c4_packed)")
    parser.add_argument("--tokenizer", help="hub id, directory or tokenizer.json (default: the pack's, by its name)")


def _mixin_loss_flag(parser: CommandParser) -> None:
    choices = ("lm", "answer", "weighted", "perseq")
    parser.add_argument(
        "--mixin_loss", choices=choices, default="lm", help="loss weights of mixin examples (default lm)"
    )


def _view_flags(parser: CommandParser, parts: tuple[str, ...] = PARTS) -> None:
    text = f"parts of each sample (default: {' '.join(parts)})"
    parser.add_argument("--show", nargs="+", choices=parts, default=parts, help=text)
    if "graph" in parts:
        parser.add_argument("--dot", action="store_true", help="print only the graphs, for Graphviz")
    parser.add_argument("--ids", action="store_true", help="show each token's id after it")
    text = "auto: on a terminal, unless NO_COLOR is set (default auto)"
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help=text)


_Flags = Callable[[CommandParser], None]
_COMMANDS: tuple[tuple[str, Callable[[argparse.Namespace], Iterator[str]], _Flags, str], ...] = (
    ("split", split_lines, _split_flags, "rows of eval, test or mixin, as they are evaluated or mixed in"),
    ("stream", stream_lines, _stream_flags, "samples of pptrain's stream, a function of seed, index and stage"),
    ("mixture", mixture_lines, _mixture_flags, "samples of a pretrain run: packed blocks and synthetic ones"),
    ("shards", shards_lines, _shards_flags, "packed blocks ('c4 N' in messages) and where documents end in them"),
    ("lengths", length_lines, _lengths_flags, "how long problems are, and what share overflows a seq_len"),
)


if __name__ == "__main__":
    run_command(main)
