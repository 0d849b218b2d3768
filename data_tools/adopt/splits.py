"""Data splits of the Accelerate scripts. Their rows lack lookahead and number of edges, which the text gives."""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_tools.adopt.plan import Adoption, Options, beside
from data_tools.base.errors import UserError, is_number
from data_tools.base.files import sha256_of_file, whole_file, write_json
from data_tools.base.foreign import number_of, read_object
from data_tools.search.examples import SEARCH, Example
from data_tools.search.generator import BUILTIN_NAME
from data_tools.search.prompts import parse_prompt
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

_ADOPTED = "adopted from the Accelerate scripts"  # in the place of the generator's version
_NUMBERS = ("max_input_size", "max_lookahead", "seed")


def plan_splits(source: Path, options: Options) -> Adoption:
    """Check sizes and hashes; rows are checked when they are written.

    Raises:
        UserError: meta.json lacks something, is about another task, or does not describe the files beside it.
    """
    meta = read_object(source / META_NAME)
    if meta["task"] != SEARCH:
        raise UserError(f"{source} holds problems of the task {meta['task']!r}; only {SEARCH!r} can be adopted.")
    alpha = meta.get("alpha", 1.0)
    if not is_number(alpha):
        raise UserError(f"{source / META_NAME}: expected a number as alpha, got {alpha!r:.80}.")
    numbers = {name: number_of(meta, name, source / META_NAME) for name in _NUMBERS}
    for name in SPLIT_NAMES:
        path = source / split_file_name(name)
        recorded = meta["splits"].get(name) if isinstance(meta["splits"], dict) else None
        sha256 = recorded.get("sha256") if isinstance(recorded, dict) else None
        if not path.is_file() or sha256_of_file(path) != sha256:
            raise UserError(f"{path} is not the file that {META_NAME} beside it describes: copy the splits again.")
    target = beside(split_directory(options.scratch_dir, *numbers.values()), source)
    usage = (
        f"Give pptrain and pretrain --data_dir {target}; pptrain generates with the built-in generator unless "
        "--generator names yours."
    )
    return Adoption(source, target, partial(_fill, source, numbers, alpha), usage)


def _fill(source: Path, numbers: dict[str, int], alpha: float, directory: Path) -> None:
    files: dict[str, SplitFile] = {}
    seen: dict[bytes, str] = {}
    for name in SPLIT_NAMES:
        path = source / split_file_name(name)
        digest, num_bytes, number = hashlib.sha256(), 0, 0
        with whole_file(directory / path.name) as file:
            for number, (line, prompt) in enumerate(_rows(path), start=1):
                if prompt in seen:
                    raise UserError(f"{path}, line {number}: its prompt is in {seen[prompt]} too.")
                seen[prompt] = name
                file.write(line)
                digest.update(line)
                num_bytes += len(line)
        files[path.name] = SplitFile(number, num_bytes, digest.hexdigest())
    adopted = SplitMeta(
        max_input_size=numbers["max_input_size"],
        max_lookahead=numbers["max_lookahead"],
        seed=numbers["seed"],
        alpha=alpha,
        stage=numbers["max_lookahead"],
        generator_name=BUILTIN_NAME,
        generator_version=_ADOPTED,
        files=files,
    )
    write_json(directory / META_NAME, adopted.to_json())


def _rows(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Each row as a line of ours, and its prompt's digest."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                text, answers = row["input_text"].rstrip(), [answer.strip() for answer in row["output_texts"]]
                about = {name: row[name] for name in ("alpha", "stage", "seed")}
                prompt = parse_prompt(text)
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}, line {number}: not a row of data splits ({error!r}).") from None
            if not answers or not set(answers) <= set(prompt.answers()):
                raise UserError(f"{path}, line {number}: output_texts {answers} do not lead to {prompt.goal}.")
            example = Example(text, answers, [], prompt.lookahead(), len(prompt.edges))
            yield row_line(example, **about), prompt_digest(text)
