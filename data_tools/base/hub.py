"""Models and tokenizers of the Hugging Face Hub that were fetched where there is a network, for nodes without one.

They are in a scratch directory, in the form of the cache of the Hub's own client, which finds them there by their ids.
"""

import os
from pathlib import Path

DESCRIPTION = ("*.json", "*.txt", "*.model", "*.jinja")  # files of a model and its tokenizer, no weights


def hub_directory(scratch_dir: str | Path) -> Path:
    """Where a scratch directory keeps what was fetched."""
    return Path(scratch_dir) / "hub"


def use_fetched(scratch_dir: str | Path | None) -> None:
    """Let the Hub's client, here and in processes started later, use what was fetched into a scratch directory, if any.

    It replaces the client's own cache, so that nothing that is only there is found.
    """
    if scratch_dir is None or not (directory := hub_directory(scratch_dir)).is_dir():
        return
    from huggingface_hub import constants  # here: most scratch directories have none

    os.environ["HF_HUB_CACHE"] = constants.HF_HUB_CACHE = str(directory)


def how_to_fetch(hub_id: str) -> str:
    """A sentence for errors about something that is not here."""
    return (
        f"For nodes without a network, fetch it where there is one: python -m data_tools.fetch_assets hub {hub_id} "
        "--scratch_dir DIR"
    )
