"""Which elements of which parameters each rank's optimizer holds.

ZeRO's optimizers hold flat fp32 tensors, called partitions here. A partition is described by its pieces: runs of
elements that it has in common with a parameter, by name. Between them there may be padding. A description of the saved
and of the own partitions says what a rank must read from where, whatever the two layouts are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ds_train.step.engine import Engine, is_plain

WEIGHTS = "fp32"  # beside the keys of an optimizer's state
_MOMENTUM = "momentum_buffer"  # Muon's

Sizes = Mapping[str, int]  # elements of each parameter of a group, in its order
Read = Callable[[str, int, torch.Tensor], None]  # fills a flat tensor with elements of a parameter, from one number on


@dataclass(frozen=True)
class Piece:
    """A run of elements that a partition has in common with a parameter.

    Attributes:
        name: of the parameter.
        in_parameter, in_partition: number of its first element in either; the parameter counted as if it were flat.
        length: number of elements.
    """

    name: str
    in_parameter: int
    in_partition: int
    length: int


def end_to_end(sizes: Sizes, start: int, length: int, padding: Sequence[int] = ()) -> list[Piece]:
    """The pieces of a partition of ZeRO 1 and 2, which lay a group's parameters end to end and cut the result.

    Args:
        start, length: of the partition, in elements of the group.
        padding: elements behind each parameter; () for none.
    """
    pieces, position = [], 0
    for (name, size), room in zip(sizes.items(), padding or [0] * len(sizes), strict=True):
        first, end = max(position, start), min(position + size, start + length)
        if first < end:
            pieces.append(Piece(name, first - position, first - start, end - first))
        position += size + room
    return pieces


def each_cut(sizes: Sizes, rank: int, num_ranks: int) -> list[Piece]:
    """The pieces of a partition of ZeRO 3, which cuts each parameter into equal shares, the last one padded."""
    pieces, position = [], 0
    for name, size in sizes.items():
        share = -(-size // num_ranks)
        length = min(share, size - rank * share)
        if length > 0:
            pieces.append(Piece(name, rank * share, position, length))
        position += share
    return pieces


@dataclass
class Partition:
    """A tensor of a rank's optimizer.

    Attributes:
        weights: fp32 master weights. Flat, but without ZeRO a parameter as it is.
        size: number of elements, with padding, which files lack at the end of `weights`.
        pieces: what the elements belong to.
        group: the optimizer's parameter group: hyper-parameters, and what some optimizers count there.
        state: the optimizer's state of it, by key.
        whole: pieces of Muon's momentum where it is kept for all of each parameter that the partition has a piece of.
    """

    weights: torch.Tensor
    size: int
    pieces: list[Piece]
    group: dict[str, Any]
    state: dict[str, Any]
    whole: list[Piece] | None = None

    def pieces_of(self, key: str) -> list[Piece]:
        """The pieces of the weights, or of a state that has a number for each element."""
        return self.whole if key == _MOMENTUM and self.whole is not None else self.pieces

    def size_of(self, key: str) -> int:
        """Number of elements, with padding, of the weights or of a state that has a number for each element."""
        if key == _MOMENTUM and self.whole is not None:
            return sum(piece.length for piece in self.whole)
        return self.size

    def part(self, piece: Piece) -> torch.Tensor:
        """The weights of a piece, flat."""
        return self.weights.view(-1)[piece.in_partition :][: piece.length]

    def fill(self, key: str, target: torch.Tensor, read: Read) -> None:
        """Fill the weights, or a state of them, piece by piece; padding becomes 0."""
        flat, position = target.view(-1), 0
        for piece in self.pieces_of(key):
            flat[position : piece.in_partition].zero_()
            position = piece.in_partition + piece.length
            read(piece.name, piece.in_parameter, flat[piece.in_partition : position])
        flat[position:].zero_()


def whole_momentum(pieces: Sequence[Piece], sizes: Sizes, group: Mapping[str, Any]) -> list[Piece] | None:
    """`Partition.whole` of ZeRO 1 and 2 (but not of DeepSpeed's bf16 optimizer); None if Muon is not used."""
    if not group.get("use_muon"):
        return None
    whole, position = [], 0
    for name in (piece.name for piece in pieces):
        whole.append(Piece(name, 0, position, sizes[name]))
        position += sizes[name]
    return whole


def partitions_of(engine: Engine) -> list[Partition]:
    """The partitions of this rank's optimizer. Their tensors are the optimizer's own."""
    optimizer = engine.optimizer
    if is_plain(engine):
        names = optimizer_names(engine)
        parameters = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
        return [
            Partition(
                parameter.data, parameter.numel(), [Piece(name, 0, 0, parameter.numel())], group,
                optimizer.state[parameter],
            )
            for name, (parameter, group) in zip(names, parameters, strict=True)
        ]  # fmt: skip
    all_sizes = [numbers_of_elements(shapes) for shapes in engine._get_zero_param_shapes()]
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # ZeRO 3
        return list(_partitions_of_zero_3(engine, all_sizes))
    return list(_partitions_of_zero_1_2(engine, all_sizes))


def numbers_of_elements(shapes: Mapping[str, torch.Size]) -> dict[str, int]:
    return {name: shape.numel() for name, shape in shapes.items()}


def _partitions_of_zero_1_2(engine: Engine, all_sizes: Sequence[Sizes]) -> Iterator[Partition]:
    optimizer = engine.optimizer
    paddings = getattr(optimizer, "round_robin_bit16_padding", [()] * len(all_sizes))  # the bf16 optimizer has none
    for group, sizes, padding in zip(optimizer.param_groups, all_sizes, paddings, strict=True):
        (weights,) = group["params"]
        pieces = end_to_end(sizes, engine.global_rank * weights.numel(), weights.numel(), padding)
        is_bf16_optimizer = hasattr(optimizer, "bf16_groups")
        whole = None if is_bf16_optimizer else whole_momentum(pieces, sizes, group)
        yield Partition(weights.data, weights.numel(), pieces, group, optimizer.optimizer.state[weights], whole)


def _partitions_of_zero_3(engine: Engine, all_sizes: Sequence[Sizes]) -> Iterator[Partition]:
    optimizer = engine.optimizer
    for number, (weights, sizes) in enumerate(zip(optimizer.fp32_partitioned_groups_flat, all_sizes, strict=True)):
        pieces = each_cut(sizes, engine.global_rank, engine.dp_world_size)
        group = optimizer.param_groups[optimizer.sub_group_to_group_id[number]]
        yield Partition(weights.data, weights.numel(), pieces, group, optimizer.optimizer.state[weights])


def optimizer_names(engine: Engine) -> list[str]:
    """Names of the parameters that the optimizer holds, in its order, which is the same for all ZeRO stages."""
    optimizer = engine.optimizer
    groups = [group["params"] for group in optimizer.param_groups] if is_plain(engine) else None
    for attribute in ("bit16_groups", "bf16_groups", "fp16_groups"):
        groups = groups or getattr(optimizer, attribute, None)
    return [engine.param_names[parameter] for group in groups or () for parameter in group]


@contextmanager
def changed_weights(engine: Engine) -> Iterator[None]:
    """Inside the block, weights may change: of ZeRO 3, no rank holds whole ones there, and may again afterwards."""
    of_zero_3 = engine.optimizer if hasattr(engine.optimizer, "checkpoint_event_prologue") else None
    if of_zero_3:
        of_zero_3.checkpoint_event_prologue()
    yield
    if of_zero_3:
        of_zero_3.checkpoint_event_epilogue()


def set_weights(engine: Engine, parameter: torch.nn.Parameter, whole: torch.Tensor) -> None:
    """Set the model's own weights of a parameter, in the precision of training; of ZeRO 3 this rank's share."""
    if not hasattr(parameter, "ds_tensor"):
        parameter.data.copy_(whole)
        return
    share = parameter.ds_tensor.numel()
    own = whole.flatten()[engine.global_rank * share :][:share]
    parameter.ds_tensor.data[: own.numel()].copy_(own)


def round_weights(engine: Engine) -> None:
    """Make the model's weights of the optimizer's fp32 ones, after a change of these. Collective."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "update_lp_params"):  # ZeRO 1 and 2
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_partitioned_groups_flat"):
        flats = zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True)
        for rounded, exact in flats:
            rounded.data.copy_(exact.data)
