"""The global random generators of this rank. Only dropout draws from them, with --keep_dropout."""

import random
from typing import Any

import torch

from data_tools.base.errors import UserError
from ds_train.checkpoints.state import TrainState
from ds_train.ranks.collectives import uses_gpus
from ds_train.ranks.world import World


def rng_state() -> dict[str, Any]:
    """The states of this rank's global generators, in types that any torch.load policy reads."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if uses_gpus():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def seed_rng(seed: int, rank: int) -> None:
    """Seed this rank's generators."""
    random.seed(seed + rank)
    torch.manual_seed(seed + rank)


def set_rng_state(state: dict[str, Any]) -> None:
    """Set the generators to what `rng_state` gave.

    Raises:
        UserError: it is something else.
    """
    try:
        random.setstate(state["python"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state and uses_gpus():
            torch.cuda.set_rng_state(state["cuda"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint's state of random generators cannot be read ({type(error).__name__}: {error}). "
            "Resume from an older step directory with --resume_from."
        ) from None


def restore_rng(saved: TrainState, world: World) -> None:
    """Restore this rank's random state; a rank that the saved run did not have is seeded anew."""
    if world.rank < len(saved.rng):
        set_rng_state(saved.rng[world.rank])
    else:
        seed_rng(saved.seed + saved.step, world.rank)
