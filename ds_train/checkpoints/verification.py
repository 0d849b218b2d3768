"""Checks checkpoints with all ranks: each hashes a share of the files, and rank 0 decides."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from ds_train.checkpoints.manifest import FileEntry, FindDamage, damage_in
from ds_train.ranks.collectives import broadcast_object, gather_objects, on_main
from ds_train.ranks.world import World

T = TypeVar("T")

_RANK = re.compile(r"rank_(\d+)_mp_rank")  # in the name of a file that each rank has one of


def with_all_ranks(world: World, decide: Callable[[FindDamage], T]) -> T:
    """Let rank 0 decide something about checkpoints, while all ranks read those that it asks about. Collective.

    Args:
        decide: is called on rank 0, with a function that finds damage in files.

    Returns:
        its result, on all ranks; an expected error of it is raised on all.
    """
    if not dist.is_initialized():  # preflight runs without other ranks
        return decide(damage_in)
    if world.is_main:
        return on_main(world, lambda: _decided(world, decide))
    while (question := broadcast_object(None)) is not None:
        _damage_by_all(world, *question)
    return on_main(world, lambda: decide(damage_in))


def _decided(world: World, decide: Callable[[FindDamage], T]) -> T:
    def find_damage(checkpoint: Path, files: Mapping[str, FileEntry]) -> str | None:
        return _damage_by_all(world, *broadcast_object((checkpoint, dict(files))))

    try:
        return decide(find_damage)
    finally:
        broadcast_object(None)


def _damage_by_all(world: World, checkpoint: Path, files: Mapping[str, FileEntry]) -> str | None:
    own = damage_in(checkpoint, share_of(files, world))
    return next(filter(None, gather_objects(own)), None)


def share_of(files: Mapping[str, FileEntry], world: World) -> dict[str, FileEntry]:
    """The files that a rank hashes.

    As far as possible they are those that it will load: then they are in its node's page cache already.
    """
    of_ranks = {name: int(found[1]) for name in files if (found := _RANK.search(name))}
    num_saved = max(of_ranks.values(), default=0) + 1
    owners = {name: number * world.size // num_saved for name, number in of_ranks.items()}
    others = sorted(set(files) - set(owners), key=lambda name: files[name].size, reverse=True)
    owners |= {name: world.size - 1 - number % world.size for number, name in enumerate(others)}
    return {name: entry for name, entry in files.items() if owners[name] == world.rank}
