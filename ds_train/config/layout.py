"""How a global batch is divided over ranks and forwards."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The ranks, and what one of them computes at a time. It decides the speed, never the trajectory.

    Attributes:
        world_size: ranks.
        micro_batch: full samples, of seq_len tokens each, whose tokens fit into a forward. Shorter samples fill the
            same room, so the samples of a forward are this many at least.
        global_batch: samples of an optimizer step over all ranks, at least one for each.
    """

    world_size: int
    micro_batch: int
    global_batch: int

    @property
    def grad_accum(self) -> int:
        """Forwards of a step where all samples are full."""
        return -(-self.global_batch // (self.world_size * self.micro_batch))

    @property
    def samples_of_largest_rank(self) -> int:
        return -(-self.global_batch // self.world_size)

    def num_samples(self, rank: int) -> int:
        part = self.rank_slice(rank)
        return part.stop - part.start

    def rank_slice(self, rank: int) -> slice:
        """This rank's samples: a contiguous part, so that rank order is global sample order; sizes differ by one."""
        first, end = (n * self.global_batch // self.world_size for n in (rank, rank + 1))
        return slice(first, end)
