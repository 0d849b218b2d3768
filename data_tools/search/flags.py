"""The flags of commands that choose a generator."""

import argparse

from data_tools.search.examples import TASKS, GeneratorChoice


def add_generator_flags(parser: argparse.ArgumentParser, where: str = "") -> None:
    """Add ``--generator``, ``--generator_task`` and ``--generator_options``.

    Args:
        where: begins the description of the defaults.
    """
    parser.add_argument("--generator", help=f"package.module:ClassName (default: {where}the built-in one)")
    parser.add_argument("--generator_task", choices=TASKS, help=f"what it generates (default: {where}search)")
    parser.add_argument(
        "--generator_options",
        nargs="+",
        metavar="KEY=VALUE",
        help=f"more keywords of its generate_batch (default: {where}none)",
    )


def generator_choice(args: argparse.Namespace, default: GeneratorChoice | None = None) -> GeneratorChoice:
    """The generator that the flags choose; ``default`` has what they leave out.

    Raises:
        UserError: options of another form than ``key=value``.
    """
    return (default or GeneratorChoice()).changed(args.generator, args.generator_task, args.generator_options)
