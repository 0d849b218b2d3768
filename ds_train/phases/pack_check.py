"""Compares packs with their hashes while training runs: reading all of it before the first step would take too long."""

import threading
from collections.abc import Iterable

import torch

from data_tools.base.errors import UserError, user_message
from data_tools.corpus.shards import PackedBlocks
from ds_train.ranks.collectives import broadcast_object, device_of, sum_over_ranks
from ds_train.ranks.world import World


class PackCheck:
    """Hashes the files of packs in a thread of rank 0, from construction on."""

    def __init__(self, packs: Iterable[PackedBlocks], world: World) -> None:
        self._packs = [*packs]
        self._world = world
        self._problem: str | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._verify, name="pack check", daemon=True)
        if world.is_main:
            self._thread.start()

    def raise_if_damaged(self) -> None:
        """Raise on all ranks what rank 0 has found so far. Collective, until the check is over.

        Raises:
            UserError: a file does not have its recorded hash, or cannot be read.
        """
        if self._is_over:
            return
        is_done = self._world.is_main and not self._thread.is_alive()
        found = torch.tensor([is_done, self._problem is not None], dtype=torch.int64, device=device_of(self._world))
        is_over, is_damaged = sum_over_ranks(found).tolist()
        self._is_over = bool(is_over)
        if is_damaged:
            raise UserError(
                f"{broadcast_object(self._problem)} This launch may have trained on it: when the file is whole again, "
                "resume from a checkpoint that is older (--resume_from)."
            )

    def _verify(self) -> None:
        try:
            for pack in self._packs:
                pack.verify()
        except Exception as error:  # a thread would lose it
            self._problem = user_message(error) or repr(error)
