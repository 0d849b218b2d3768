"""All commands of ds-train under one name. Without arguments: the list of them.

    ds-train COMMAND [ARGUMENT …]      run a command, as `python -m` does; COMMAND --help shows its flags
    ds-train path NAME                 print the path of a command that launchers start, or of a file of ds_configs
    ds-train completion bash|zsh       print a script that completes commands, flags and their choices
    ds-train schema run|experiment     print the JSON schema of a run file (--config) or of an experiment's CONFIG

Commands that several ranks run are started by a launcher, which needs their file:

    deepspeed $(ds-train path pptrain) --scratch_dir DIR --deepspeed_config $(ds-train path pptrain_zero2.json)
"""

import json
import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import data_tools
import ds_configs
import ds_train
from data_tools.base.command_files import Command, commands_of
from data_tools.base.command_line import CommandParser, did_you_mean, name_program
from data_tools.base.completion import SHELLS, Words, parser_of, script
from data_tools.base.errors import UserError, run_command
from data_tools.base.version import SHOWN

_CONFIGS = Path(str(ds_configs.__file__)).parent
_HEADINGS = {"ds_train": "Training", "data_tools": "Data and runs"}
_OWN = {
    "path": "Print the path of a command that launchers start, or of a file of ds_configs.",
    "completion": "Print a script that completes commands, flags and their choices in bash or zsh.",
    "schema": "Print the JSON schema of a run file (--config) or of an experiment's CONFIG, for editors.",
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
    if args.command == "path":
        print(path_of(args.name, commands))
    elif args.command == "completion":
        print(completion(args.shell, commands), end="")
    else:
        schema = import_module("ds_train.experiment.schema")  # by name, as the commands: it is above this room
        print(json.dumps(schema.schema_of(args.what), indent=1, ensure_ascii=False))
    return 0


def _parser() -> CommandParser:
    """The parser of what is no command of its own."""
    parser = CommandParser(description=__doc__, prog="ds-train")
    own = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inner = {
        name: own.add_parser(name, help=text, description=text, prog=f"ds-train {name}") for name, text in _OWN.items()
    }
    text = "such as pptrain, pptrain_zero2.json or experiments/small.yaml"
    inner["path"].add_argument("name", metavar="NAME", help=text)
    inner["completion"].add_argument("shell", choices=SHELLS, help="the shell that reads it")
    inner["schema"].add_argument("what", choices=("run", "experiment"), help="the kind of file that it describes")
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
    if name in commands:
        if not commands[name].starts_as_file:
            raise UserError(
                f"{name} is not started as a file; run `ds-train {name}` or `python -m {commands[name].module}`."
            )
        return commands[name].file
    if (_CONFIGS / name).is_file():
        return _CONFIGS / name
    known = _with_paths(commands)
    otherwise = f"; expected one of {', '.join(known)}."
    raise UserError(f"there is no {name!r}{did_you_mean(name, known, otherwise)}")


def _with_paths(commands: dict[str, Command]) -> list[str]:
    """The names that `path_of` knows."""
    files = [str(file.relative_to(_CONFIGS)) for end in ("json", "yaml") for file in _CONFIGS.rglob(f"*.{end}")]
    return [*(name for name, command in commands.items() if command.starts_as_file), *sorted(files)]


def completion(shell: str, commands: dict[str, Command]) -> str:
    """A shell's script; see `script`. Loads all commands, but not torch."""
    words = Words()
    words.add("", _parser())
    words.names[""] = [*commands, *_OWN]
    for name, command in commands.items():
        module = command.module + (".__main__" if command.file.stem == "__main__" else "")
        words.add(name, parser_of(import_module(module).main))
    for phase in words.names["preflight"]:  # which takes the trainer's flags as well
        words.names[f"preflight {phase}"] = []
        words.flags[f"preflight {phase}"] = [*dict.fromkeys(words.flags["preflight"] + words.flags[phase])]
    words.names["path"] = _with_paths(commands)
    return script(shell, words, [name for name, command in commands.items() if command.starts_as_file])


def cli() -> None:
    """What the program ds-train calls."""
    run_command(main)


if __name__ == "__main__":
    cli()
