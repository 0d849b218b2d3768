"""Completion of command lines in bash and zsh: a script that is made from the commands' parsers."""

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

SHELLS = ("bash", "zsh")
_PLAIN = re.compile(r"[\w./+-]+")  # needs no quoting

_BASH = r"""# Completion of ds-train, and of its trainers behind the launcher deepspeed, made by `ds-train completion`
_ds_train() {
    local word="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD - 1]}" context="" next at
    local names="" flags="" contexts="@CONTEXTS@"
    if [[ "$word" == "=" ]]; then
        word=""
    elif [[ "$previous" == "=" ]]; then
        previous="${COMP_WORDS[COMP_CWORD - 2]}"
    fi
    # Which command: its name after ds-train, or its file after deepspeed.
    for ((at = 1; at < COMP_CWORD; at++)); do
        if [[ "${COMP_WORDS[0]##*/}" != deepspeed ]]; then
            next="${context:+$context }${COMP_WORDS[at]}"
            [[ "$contexts" != *"|$next|"* ]] || context="$next"
            continue
        fi
        case "${COMP_WORDS[at]}" in
@FILES@
        esac
    done
    [[ -n "$context" || "${COMP_WORDS[0]##*/}" != deepspeed ]] || return 0
    case "$context $previous" in
@VALUES@
        *)
            case "$context" in
@WORDS@
            esac
            ;;
    esac
    [[ "$word" != -* ]] || names="$flags"
    # shellcheck disable=SC2207 # the words have no blanks
    COMPREPLY=($(compgen -W "$names" -- "$word"))
}
complete -o default -o bashdefault -F _ds_train ds-train deepspeed
"""


@dataclass
class Words:
    """What may follow in each context; a context is a command, or a command and one within it.

    Attributes:
        names: commands, and choices of positional arguments.
        flags: by context.
        values: choices of a flag, by context and flag.
    """

    names: dict[str, list[str]] = field(default_factory=dict)
    flags: dict[str, list[str]] = field(default_factory=dict)
    values: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, context: str, parser: argparse.ArgumentParser) -> None:
        """Add all that a parser takes, and those of the commands within it."""
        names, flags = self.names.setdefault(context, []), self.flags.setdefault(context, [])
        for action in parser._actions:
            inner = action.choices if isinstance(action, argparse._SubParsersAction) else {}
            choices = [str(choice) for choice in action.choices or () if _PLAIN.fullmatch(str(choice))]
            long = next((name for name in action.option_strings if name.startswith("--")), None)
            if not action.option_strings:
                names += choices
            elif long and action.help != argparse.SUPPRESS:
                flags.append(long)
                if choices:
                    self.values[context, long] = choices
            for name, command in inner.items():
                self.add(f"{context} {name}".strip(), command)


def parser_of(main: Callable[[list[str]], object]) -> argparse.ArgumentParser:
    """The parser that a command makes. It is made when the command is asked for help, which is not shown here."""
    made: list[argparse.ArgumentParser] = []
    print_help = argparse.ArgumentParser.print_help
    argparse.ArgumentParser.print_help = lambda self, file=None: made.append(self)  # type: ignore[method-assign]
    try:
        main(["--help"])
    except SystemExit:
        pass
    finally:
        argparse.ArgumentParser.print_help = print_help  # type: ignore[method-assign]
    return made[0]


def script(shell: str, words: Words, files: Iterable[str]) -> str:
    """The script for a shell of `SHELLS`.

    Args:
        files: commands that launchers start by their file.
    """
    values = {f"{context} {flag}": {"names": found} for (context, flag), found in words.values.items()}
    others = {name: {"names": names, "flags": words.flags[name]} for name, names in words.names.items()}
    starts = [f"{' ' * 12}{name}.py | */{name}.py | *'path {name})'*) context={name} && break ;;" for name in files]
    text = (
        _BASH.replace("@FILES@", "\n".join(starts))
        .replace("@CONTEXTS@", "|".join(["", *filter(None, words.names), ""]))
        .replace("@VALUES@", _cases(values, 8))
        .replace("@WORDS@", _cases(others, 16))
    )
    return f"autoload -Uz bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def _cases(cases: Mapping[str, Mapping[str, Sequence[str]]], indent: int) -> str:
    """Lines of a case statement that set variables to words."""
    lines = []
    for pattern, variables in cases.items():
        settings = " ".join(f'{name}="{" ".join(found)}"' for name, found in variables.items())
        lines.append(f'{" " * indent}"{pattern}") {settings} ;;')
    return "\n".join(lines)
