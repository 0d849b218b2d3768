"""How a global batch is divided over ranks and micro-batches."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Ranks × accumulation steps × micro batch = global batch. It decides the speed, never the trajectory."""

    world_size: int
    micro_batch: int
    grad_accum: int

    @property
    def samples_per_rank(self) -> int:
        return self.micro_batch * self.grad_accum

    @property
    def global_batch(self) -> int:
        return self.world_size * self.samples_per_rank

    def rank_slice(self, rank: int) -> slice:
        """This rank's samples: a contiguous part, so that rank order is global sample order."""
        return slice(rank * self.samples_per_rank, (rank + 1) * self.samples_per_rank)
