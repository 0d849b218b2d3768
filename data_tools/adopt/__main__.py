"""Make splits, packed blocks and checkpoints of the Accelerate scripts, and checkpoints of the Trainer, usable here.

    python -m data_tools.adopt SOURCE --scratch_dir DIR [--copy] [--tokenizer T] [--model_name M]

Everything of a known form at or below SOURCE is checked and, if all of it is right, linked into DIR's layout. What has
to be written differently is written there; SOURCE is only read.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from data_tools.adopt.checkpoints import plan_checkpoint
from data_tools.adopt.packs import plan_pack
from data_tools.adopt.plan import Adoption, Options
from data_tools.adopt.splits import plan_splits
from data_tools.base.command_line import CommandParser
from data_tools.base.errors import Problems, UserError, run_command
from data_tools.base.files import whole_directory
from data_tools.base.foreign import Form, form_of

_PLANS: dict[Form, Callable[[Path, Options], Adoption]] = {
    Form.SPLITS: plan_splits,
    Form.PACK: plan_pack,
    Form.ACCELERATE_CHECKPOINT: plan_checkpoint,
    Form.TRAINER_CHECKPOINT: plan_checkpoint,
}


def main(argv: list[str] | None = None) -> None:
    """The command; see ``--help``."""
    parser = CommandParser(prog="python -m data_tools.adopt", description=__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a directory of a known form, or one above several")
    parser.add_argument("--scratch_dir", type=Path, required=True, help="directory of all data and runs")
    parser.add_argument("--copy", action="store_true", help="copy files instead of linking to them")
    parser.add_argument("--tokenizer", help="of packed blocks and checkpoints (default: what they name or hold)")
    parser.add_argument("--model_name", help="preset, directory or hub id of checkpoints without a config.json")
    args = parser.parse_args(argv)
    options = Options(args.scratch_dir, args.copy, args.tokenizer, args.model_name)
    adoptions = _checked(args.source, options)
    for adoption in adoptions:
        with whole_directory(adoption.target) as directory:
            adoption.fill(directory)
        print(f"{adoption.source} → {adoption.target}\n  {adoption.usage}")


def _checked(source: Path, options: Options) -> list[Adoption]:
    """A plan for everything at or below a directory, or one message with all that is wrong."""
    if not source.is_dir():
        raise UserError(f"{source} is not a directory.")
    problems = Problems()
    adoptions: list[Adoption] = []
    for directory, form in _forms_below(source):
        with problems.collect():
            adoption = _PLANS[form](directory, options)
            others = [other.source for other in adoptions if other.target == adoption.target]
            if adoption.target.exists() or others:
                where = f"that {others[0]} would become too" if others else "which exists"
                raise UserError(f"{directory} would become {adoption.target}, {where}: take another --scratch_dir.")
            adoptions.append(adoption)
    problems.raise_if_any()
    if not adoptions:
        raise UserError(f"{source}: nothing to adopt. Expected {', '.join(Form)}.")
    return adoptions


def _forms_below(source: Path) -> Iterator[tuple[Path, Form]]:
    for place, folders, _ in os.walk(source):
        folders.sort()
        if form := form_of(Path(place)):
            folders.clear()
            yield Path(place), form


if __name__ == "__main__":
    run_command(main)
