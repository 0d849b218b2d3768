"""Fetches models and files of datasets from the Hugging Face Hub into a scratch directory.

Downloads are the Hub's client's: it continues those that were cut, and does not repeat those that are whole. An answer
that the Hub is busy or fails is waited for here.
"""

import sys
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data_tools.base.errors import UserError, first_line
from data_tools.base.hub import DESCRIPTION, hub_directory

C4 = "allenai/c4"
C4_FILES = "en/c4-train.*.json.gz"
# Bytes of a token of English text in C4's form, compressed and not: a file of C4 of 319 MB has 165 million.
_BYTES_OF_TOKEN = {True: 1.9, False: 4.7}
_COMPRESSED = (".gz", ".zst", ".parquet")
_SPARE = 1.2  # times the tokens asked for: documents differ, and some are held out
_WAITS_S = (1, 4, 16)  # before an attempt is repeated
_BUSY = (429, 500, 502, 503, 504)  # status codes that pass

T = TypeVar("T")


class DatasetFile(NamedTuple):
    """A file of a dataset; size in bytes."""

    name: str
    size: int


def fetch_model(hub_id: str, scratch_dir: Path, *, revision: str | None = None, weights: bool = True) -> Path:
    """Put a model's configuration, tokenizer and weights where commands with this scratch directory find them.

    Args:
        revision: branch, tag or commit; it becomes what the id alone stands for there. None: the newest.
        weights: False leaves them out, for models that start from random ones.

    Returns:
        The directory of its files; its name is the commit.

    Raises:
        UserError: it cannot be fetched.
    """
    from huggingface_hub import HfApi, snapshot_download  # here: other commands need no hub client

    cache = hub_directory(scratch_dir)
    try:
        info = _patiently(lambda: HfApi().model_info(hub_id, revision=revision))
        names = [file.rfilename for file in info.siblings or ()]
        patterns = [*DESCRIPTION, *(_weight_patterns(names) if weights else ())]
        cache.mkdir(parents=True, exist_ok=True)
        wanted: dict[str, Any] = {"cache_dir": cache, "revision": info.sha, "allow_patterns": patterns}
        directory = Path(_patiently(lambda: snapshot_download(hub_id, **wanted)))
    except Exception as error:  # the client raises a dozen kinds, by cause and version
        raise _not_fetched(hub_id, error) from None
    # What the id alone stands for without a network: the client writes this where it is asked for a branch.
    reference = directory.parents[1] / "refs" / "main"
    reference.parent.mkdir(exist_ok=True)
    reference.write_text(directory.name)
    return directory


def _weight_patterns(names: list[str]) -> list[str]:
    """Those of one format, of which repositories often have several."""
    has_safetensors = any(fnmatch(name, "*.safetensors") for name in names)
    return ["*.safetensors"] if has_safetensors else ["pytorch_model*.bin"]


def fetch_dataset(dataset: str, pattern: str, num_tokens: int, directory: Path) -> Iterator[DatasetFile]:
    """Download the first files of a dataset, by name, that hold about so many tokens and some more.

    Args:
        pattern: of the files' names, e.g. `C4_FILES`.
        directory: where the files go, in the dataset's own folders.

    Yields:
        each file once it is there.

    Raises:
        UserError: they cannot be fetched, none fits the pattern, or there are not enough.
    """
    from huggingface_hub import HfApi, hf_hub_download  # here: other commands need no hub client

    try:
        info = _patiently(lambda: HfApi().dataset_info(dataset, files_metadata=True))
        listed = [DatasetFile(file.rfilename, file.size or 0) for file in info.siblings or ()]
        for file in _first_files(dataset, listed, pattern, num_tokens):
            wanted: dict[str, Any] = {"repo_type": "dataset", "revision": info.sha, "local_dir": directory}
            _patiently(lambda: hf_hub_download(dataset, file.name, **wanted))  # noqa: B023  called at once
            yield file
    except UserError:
        raise
    except Exception as error:  # the client raises a dozen kinds, by cause and version
        raise _not_fetched(dataset, error) from None


def _first_files(dataset: str, listed: list[DatasetFile], pattern: str, num_tokens: int) -> list[DatasetFile]:
    fitting = sorted(file for file in listed if fnmatch(file.name, pattern))
    if not fitting:
        some = ", ".join(file.name for file in listed[:3])
        raise UserError(f"--files {pattern}: {dataset} has no such files; it has {some} …")
    chosen: list[DatasetFile] = []
    tokens = 0.0
    for file in fitting:
        if tokens >= _SPARE * num_tokens:
            break
        chosen.append(file)
        tokens += file.size / _BYTES_OF_TOKEN[file.name.endswith(_COMPRESSED)]
    if tokens < num_tokens:
        raise UserError(
            f"{dataset}: its {len(fitting):,} files that fit {pattern} have about {tokens:,.0f} tokens, "
            f"{num_tokens:,} are asked for. Ask for fewer --num_blocks, or for more --files."
        )
    return chosen


def _patiently(ask: Callable[[], T]) -> T:
    """Ask the Hub, again after a while if it is busy or fails."""
    from huggingface_hub.errors import HfHubHTTPError

    for wait_s in _WAITS_S:
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in _BUSY:
                raise
            print(f"{first_line(error)}; trying again in {wait_s} s", file=sys.stderr)
        time.sleep(wait_s)
    return ask()


def _not_fetched(name: str, error: Exception) -> UserError:
    return UserError(
        f"{name} could not be fetched from the Hub ({first_line(error)}). Check the name and the network, and run the "
        "same command again: what is whole is kept. For a model that needs permission, run `hf auth login` first."
    )
