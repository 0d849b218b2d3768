"""All commands of ds-train under one name. Without arguments: the list of them.

    ds-train COMMAND [ARGUMENT …]      run a command, as `python -m` does; COMMAND --help shows its flags
    ds-train path NAME                 print the path of a command that launchers start, or of a file of ds_configs

Commands that several ranks run are started by a launcher, which needs their file:

    deepspeed $(ds-train path pptrain) --scratch_dir DIR --deepspeed_config $(ds-train path pptrain_zero2.json)
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import data_tools
import ds_configs
import ds_train
from data_tools.base.command_files import Command, commands_of
from data_tools.base.command_line import CommandParser, did_you_mean, name_program
from data_tools.base.errors import UserError, run_command
from data_tools.base.version import SHOWN

_HEADINGS = {"ds_train": "Training", "data_tools": "Data and runs"}
_OWN = {
    "path": "Print the path of a command that launchers start, or of a file of ds_configs.",
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else [*argv]
    commands = commands_of(Path(str(package.__file__)).parent for package in (ds_train, data_tools))
    if not arguments:
        print(overview(commands))
        return 0
    name, *rest = arguments
    if name in commands:
        sys.argv[1:] = rest
        name_program(f"ds-train {name}")
        runpy.run_module(commands[name].module, run_name="__main__", alter_sys=True)  # exits
    if not name.startswith("-") and name not in _OWN:
        known = [*commands, *_OWN]
        raise UserError(f"there is no command {name!r}{did_you_mean(name, known, '; `ds-train` lists them.')}")
    args = _parser().parse_args(arguments)
    print(path_of(args.name, commands))
    return 0


def _parser() -> CommandParser:
    """The parser of what is no command of its own."""
    parser = CommandParser(description=__doc__, prog="ds-train")
    own = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    path = own.add_parser("path", help=_OWN["path"], description=_OWN["path"], prog="ds-train path")
    path.add_argument("name", metavar="NAME", help="such as pptrain, pptrain_zero2.json or experiments/small.yaml")
    return parser


def overview(commands: dict[str, Command]) -> str:
    """The commands of both packages with a line each."""
    names = {
        package: [name for name, one in commands.items() if one.module.startswith(package)] for package in _HEADINGS
    }
    width = max(map(len, commands))
    lines = [f"{SHOWN}: ds-train COMMAND …, or python -m MODULE …; --help shows the flags of a command"]
    for package, heading in _HEADINGS.items():
        lines.append(f"\n{heading} (python -m {package}.COMMAND)")
        lines += [f"  {name:{width}}  {commands[name].purpose}" for name in names[package]]
    lines.append("\nAbout these")
    lines += [f"  {name:{width}}  {purpose}" for name, purpose in _OWN.items()]
    return "\n".join(lines)


def path_of(name: str, commands: dict[str, Command]) -> Path:
    """The file of a command, or of the directory ds_configs.

    Raises:
        UserError: there is none, or launchers cannot start it.
    """
    configs = Path(str(ds_configs.__file__)).parent
    if name in commands:
        if not commands[name].starts_as_file:
            raise UserError(
                f"{name} is not started as a file; run `ds-train {name}` or `python -m {commands[name].module}`."
            )
        return commands[name].file
    if (configs / name).is_file():
        return configs / name
    files = [str(file.relative_to(configs)) for end in ("json", "yaml") for file in configs.rglob(f"*.{end}")]
    known = [*(other for other, command in commands.items() if command.starts_as_file), *sorted(files)]
    otherwise = f"; expected one of {', '.join(known)}."
    raise UserError(f"there is no {name!r}{did_you_mean(name, known, otherwise)}")


def cli() -> None:
    """What the program ds-train calls."""
    run_command(main)


if __name__ == "__main__":
    cli()
