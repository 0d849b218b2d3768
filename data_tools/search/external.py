"""External generators: imported and called in their own directory, checked, and explained where they fail."""

import hashlib
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import asdict
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from data_tools.base.errors import UserError
from data_tools.search.examples import SEARCH, Example, GeneratorChoice
from data_tools.search.prompts import num_facts, parse_prompt

_LINES_SHOWN = 8  # of what a generator printed before it failed
_PROBE = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {__name__} import answer_probe; answer_probe()"


def external_example(
    choice: GeneratorChoice, *, max_input_size: int, max_lookahead: int, alpha: float, seed: int
) -> Example:
    """The first example of a new object of the generator's class. It may reseed the global random generators.

    Raises:
        UserError: the generator cannot be imported, does not follow the protocol, or fails.
    """
    name = choice.name or ""
    of_task = {"max_lookahead": max_lookahead} if choice.task == SEARCH else {}
    keywords = {"reserved_inputs": set(), "alpha": alpha, **of_task, **choice.options}
    generator_class = load_generator_class(name, tuple(keywords))
    how = f" (seed {seed}, alpha {alpha:g}, max_input_size {max_input_size})"
    with _in_its_directory(name, "failed with", how):
        generator = generator_class(max_input_size=max_input_size, seed=seed)
        batch = generator.generate_batch(choice.task, 1, **keywords)
    return _example_of_batch(batch, choice)


def probe(choice: GeneratorChoice, addresses: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Make examples in a process of their own, which compiles what the generator compiles when it is first used.

    Args:
        addresses: arguments of `external_example` for each.

    Returns:
        hex SHA-256 of the generator's file, and of the examples' texts.

    Raises:
        UserError: see `external_example`; also where the generator ends its process, or does not follow its seed.
    """
    module_directory(choice.name or "")
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, json.dumps([*map(os.path.abspath, sys.path)])],
        input=json.dumps({"choice": asdict(choice), "addresses": list(addresses)}),
        capture_output=True,
        text=True,
        errors="replace",
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        answer = {"problem": f"generator {choice.name} ended its process ({how})."}
    if "problem" in answer:
        printed = [line for line in done.stderr.splitlines() if line.strip()][-_LINES_SHOWN:]
        raise UserError("\n  ".join([answer["problem"], *(["It printed:"] if printed else []), *printed]))
    return answer["file"], answer["examples"]


def answer_probe() -> None:
    """Answer a request of `probe` on standard output; what the generator prints goes to standard error."""
    for name in (signal.SIGTERM, signal.SIGUSR1):  # they stop the job, which first waits for a compiler
        signal.signal(name, signal.SIG_IGN)
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request = json.load(sys.stdin)
    choice = GeneratorChoice(**request["choice"])
    try:
        texts, again = (_texts(choice, request["addresses"]) for _ in range(2))
        if texts != again:
            raise UserError(
                f"generator {choice.name} gives other examples when the same seed is given again; all its random "
                "numbers must come from the seed that it is constructed with."
            )
        found = {"file": _file_hash(choice.name or ""), "examples": hashlib.sha256(texts.encode()).hexdigest()}
    except UserError as error:
        found = {"problem": str(error)}
    with answer:
        json.dump(found, answer)


def _texts(choice: GeneratorChoice, addresses: Sequence[Mapping[str, Any]]) -> str:
    examples = [external_example(choice, **address) for address in addresses]
    return json.dumps([[example.input_text, example.output_texts] for example in examples])


@lru_cache(maxsize=8)
def module_directory(name: str) -> Path:
    """The directory of the file of ``package.module:ClassName``, found without running any of it.

    Raises:
        UserError: the name has another form, or no such module is on the import path.
    """
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise UserError(f"generator {name!r}: expected package.module:ClassName")
    path: Sequence[str] | None = None
    origin = None
    for part in module_name.split("."):
        spec = PathFinder.find_spec(part, path)
        if spec is None:
            raise UserError(
                f"generator {name}: cannot import {module_name!r}; its directory must be on PYTHONPATH, which is "
                f"{os.environ.get('PYTHONPATH') or 'not set'}"
            )
        path, origin = list(spec.submodule_search_locations or ()), spec.origin
    if origin is None:
        raise UserError(f"generator {name}: {module_name!r} is a directory without a module file")
    return Path(origin).absolute().parent


@contextmanager
def _in_its_directory(name: str, failed: str, how: str = "") -> Iterator[None]:
    """Run the generator's code where its file is: it may read, or compile, what is beside it. Explain its errors."""
    try:
        with chdir(module_directory(name)):
            yield
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(
            f"generator {name} {failed} sys.exit({error.code!r}): it gave up, e.g. because it could not be compiled "
            f"in {module_directory(name)}{how}"
        ) from error
    except Exception as error:
        raise UserError(f"generator {name} {failed} {type(error).__name__}: {error}{how}") from error


@lru_cache(maxsize=8)
def load_generator_class(name: str, keywords: tuple[str, ...]) -> Any:
    """Import ``package.module:ClassName``, and check that the class and its method take the protocol's arguments.

    Args:
        keywords: names of what ``generate_batch`` will be given, without task and batch_size.

    Raises:
        UserError: it cannot be imported, or it takes other arguments.
    """
    module_name, _, class_name = name.partition(":")
    importlib.invalidate_caches()  # another process may just have compiled what the module needs
    with _in_its_directory(name, f"cannot import {module_name!r}:"):
        module = importlib.import_module(module_name)
    generator_class = getattr(module, class_name, None)
    if generator_class is None:
        raise UserError(f"generator {name}: module {module_name!r} has no {class_name!r}")
    _check_call(name, generator_class, "(max_input_size, seed)", max_input_size=8, seed=0)
    signature = f".generate_batch(task, batch_size, *, {', '.join(keywords)})"
    generate_batch = getattr(generator_class, "generate_batch", None)
    _check_call(name, generate_batch, signature, None, SEARCH, 1, **dict.fromkeys(keywords))
    return generator_class


def _check_call(name: str, function: Any, expected: str, *args: Any, **kwargs: Any) -> None:
    """Raise a UserError unless ``function`` takes these arguments. Compiled functions without a signature pass."""
    problem = "it is not callable"
    if callable(function):
        try:
            inspect.signature(function).bind(*args, **kwargs)
            return
        except TypeError as error:
            problem = str(error)
        except ValueError:  # no signature to be had
            return
    raise UserError(f"generator {name} does not follow the protocol: expected {name}{expected}, but {problem}")


def _file_hash(name: str) -> str:
    """sha256 of the file that defines the class of a generator that is imported."""
    module_name, _, class_name = name.partition(":")
    module = sys.modules.get(getattr(sys.modules[module_name], class_name).__module__)
    path = getattr(module, "__file__", None)
    if path is None:
        raise UserError(f"generator {name} has no file, so its version cannot be recorded: put it in a module file")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _example_of_batch(batch: Any, choice: GeneratorChoice) -> Example:
    """The single example of an external generator's batch, with lookahead and edges read from its text."""
    name = choice.name
    if not isinstance(batch, (list, tuple)) or len(batch) != 1:
        raise UserError(f"generator {name} was asked for a list of 1 example and returned {batch!r:.200}")
    missing = [field for field in ("input_text", "output_texts", "labels") if not hasattr(batch[0], field)]
    if missing:
        raise UserError(f"generator {name} returned an object without {', '.join(missing)}: {batch[0]!r:.200}")
    input_text, output_texts = batch[0].input_text, batch[0].output_texts
    are_texts = isinstance(output_texts, (list, tuple)) and all(isinstance(text, str) for text in output_texts)
    if not isinstance(input_text, str) or not output_texts or not are_texts:
        raise UserError(
            f"generator {name} returned input_text {input_text!r:.80} and output_texts {output_texts!r:.80}: "
            "expected a string and a list of at least one string"
        )
    lookahead, num_edges = None, num_facts(input_text)
    if choice.task == SEARCH:
        try:
            prompt = parse_prompt(input_text)
        except UserError as error:
            raise UserError(f"generator {name} wrote a text that cannot be read back: {error}") from error
        lookahead, num_edges = prompt.lookahead(), len(prompt.edges)
    return Example(
        input_text=input_text.rstrip(),
        output_texts=[text.strip() for text in output_texts],
        labels=list(batch[0].labels),
        lookahead=lookahead,
        num_edges=num_edges,
    )
