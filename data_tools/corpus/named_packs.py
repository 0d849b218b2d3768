"""Packs by name: SCRATCH_DIR/data/packs/NAME holds one for each tokenizer, and the tokenizer finds its own.

The pack without a name, SCRATCH_DIR/data/c4_packed, is also called c4.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import UserError, is_number
from data_tools.corpus.shards import META_NAME, PROGRESS_NAME, PackedBlocks, PackMeta, pack_directory
from data_tools.corpus.tokenizer import TextTokenizer

C4_PACK = "c4"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_TAKEN = ("mixin", "stream")  # other kinds of samples
_UNIT = 1_000_000  # shares are whole numbers of millionths
_TOLERANCE = 1e-5  # of their sum, for shares such as 0.333
_DIGITS = 12  # of a tokenizer's hash, in the name of a directory


def check_pack_name(name: str, where: str) -> None:
    """Raise a ``UserError`` for what cannot name a pack: it names a directory and columns of logs."""
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise UserError(
            f"{where}: {name!r} cannot name a pack; take letters, digits, - and _, but not {' or '.join(_TAKEN)}."
        )


def _packs_directory(scratch_dir: str | Path) -> Path:
    return Path(scratch_dir) / "data" / "packs"


def named_pack_directory(scratch_dir: str | Path, name: str, tokenizer: TextTokenizer) -> Path:
    """Where the pack of this name and tokenizer is written."""
    return _packs_directory(scratch_dir) / name / f"tokenizer_{tokenizer.fingerprint[:_DIGITS]}"


def _candidates(scratch_dir: str | Path, name: str, c4_dir: str | Path | None) -> list[Path]:
    """Complete packs of this name, of any tokenizer."""
    if name == C4_PACK and c4_dir:
        return [Path(c4_dir)]
    of_name = sorted(path.parent for path in (_packs_directory(scratch_dir) / name).glob(f"*/{META_NAME}"))
    unnamed = [pack_directory(scratch_dir)] if name == C4_PACK else []
    return [path for path in unnamed if (path / META_NAME).exists()] + of_name


def check_pack_exists(scratch_dir: str | Path, name: str, c4_dir: str | Path | None = None) -> None:
    """Raise a ``UserError`` where no tokenizer has a pack of this name."""
    if _candidates(scratch_dir, name, c4_dir):
        return
    directory = _packs_directory(scratch_dir)
    if begun := next((directory / name).glob(f"*/{PROGRESS_NAME}"), None):
        PackMeta.read(begun.parent)  # says how to continue it
    known = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    hint = did_you_mean(name, known, f"; {directory} holds {', '.join(sorted(known)) or 'none'}.")
    raise UserError(
        f"there is no pack named {name}{hint} Make it with data_tools/build_pretrain.py --name {name}"
        f"{', or without a name' if name == C4_PACK else ''}."
    )


def find_pack(
    scratch_dir: str | Path, name: str, tokenizer: TextTokenizer, c4_dir: str | Path | None = None
) -> PackedBlocks:
    """The pack of this name that was packed with this tokenizer.

    Args:
        c4_dir: where the pack c4 is, instead (``--pack_dir``).

    Raises:
        UserError: there is none, or more than one.
    """
    check_pack_exists(scratch_dir, name, c4_dir)
    candidates = {path: PackMeta.read(path) for path in _candidates(scratch_dir, name, c4_dir)}
    fitting = [path for path, meta in candidates.items() if meta.tokenizer_sha256 == tokenizer.fingerprint]
    if len(fitting) == 1:
        return PackedBlocks(fitting[0])
    if fitting:
        raise UserError(
            f"the pack {name} is there more than once for this tokenizer ({', '.join(map(str, fitting))}); "
            + ("choose one with --pack_dir." if name == C4_PACK else "keep one of them.")
        )
    begun = named_pack_directory(scratch_dir, name, tokenizer)
    if (begun / PROGRESS_NAME).exists():
        PackMeta.read(begun)
    there = ", ".join(sorted({meta.tokenizer for meta in candidates.values()}))
    raise UserError(
        f"the pack {name} is there for other tokenizers ({there}), not for {tokenizer.name}; give --tokenizer "
        f"accordingly, or pack with it: data_tools/build_pretrain.py --name {name} --tokenizer {tokenizer.name}."
    )


def pack_shares(texts: Sequence[str]) -> dict[str, int]:
    """``NAME=SHARE`` … as name → millionths, by name: the order in which they are given means nothing.

    Raises:
        UserError: one has another form, a name occurs twice, or the shares do not sum to 1.
    """
    shares: dict[str, float] = {}
    for text in texts:
        name, _, given = text.partition("=")
        check_pack_name(name, f"--packs {text}")
        share = _number(given)
        if share is None or not 1 / _UNIT <= share <= 1:
            raise UserError(f"--packs {text}: expected NAME=SHARE with a share in (0, 1], such as {name}=0.1.")
        if name in shares:
            raise UserError(f"--packs names {name} twice; give each pack once.")
        shares[name] = share
    if abs((total := sum(shares.values())) - 1) > _TOLERANCE:
        raise UserError(f"--packs {' '.join(texts)}: the shares sum to {total:g}, expected 1.")
    return {name: round(shares[name] * _UNIT) for name in sorted(shares)}


def as_texts(shares: dict[str, int]) -> list[str]:
    """The inverse of `pack_shares`."""
    return [f"{name}={millionths / _UNIT:g}" for name, millionths in shares.items()]


def _number(text: str) -> float | None:
    try:
        value: Any = float(text)
    except ValueError:
        return None
    return value if is_number(value) else None
