"""The optimizer states of a checkpoint, read slice by slice from the mapped files of its ranks.

A rank opens the files that hold something it needs, and reads nothing else of them. Nothing is written.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from data_tools.base.errors import UserError
from data_tools.base.transfers import count
from ds_train.checkpoints.partitions import (
    WEIGHTS,
    Partition,
    Piece,
    each_cut,
    end_to_end,
    numbers_of_elements,
    whole_momentum,
)
from ds_train.checkpoints.state import TrainState, mapped_file

_CLASSES = (fragment_address, LossScaler, DynamicLossScaler, ZeroStageEnum)  # of objects in DeepSpeed's files


class _Place(NamedTuple):
    """Where a piece of a parameter is: in which partition of which saved rank."""

    rank: int
    number: int
    piece: Piece


class SavedPartitions:
    """The partitions of a checkpoint's ranks.

    Args:
        checkpoint: a complete step directory.
        saved: its training state.
        names: of the optimizer's parameters in its order, by which a checkpoint without ZeRO numbers them. Without
            them its optimizer states are not read.
    """

    def __init__(self, checkpoint: Path, saved: TrainState, names: Sequence[str] = ()) -> None:
        self._checkpoint, self._stage, self._names = checkpoint, saved.zero_stage, names
        self.model_states = mapped_file(sorted(checkpoint.glob("*_model_states.pt"))[0])
        self._num_ranks = saved.world_size if saved.zero_stage else 1
        self._sizes = [numbers_of_elements(shapes) for shapes in self.model_states["param_shapes"] or ()]
        self._file, self._partitions = cache(self._map_file), cache(self._read_partitions)
        self._places: dict[str, list[_Place]] = defaultdict(list)
        self._pieces = [self._pieces_of(rank) for rank in range(self._num_ranks)]
        for rank, partitions in enumerate(self._pieces):
            for number, pieces in enumerate(partitions):
                for piece in pieces:
                    self._places[piece.name].append(_Place(rank, number, piece))

    def _pieces_of(self, rank: int) -> list[list[Piece]]:
        """The pieces of each partition of a saved rank."""
        if self._stage == 0:
            weights = self.model_states["module"]
            return [[Piece(name, 0, 0, weights[name].numel())] for name in self._names]
        if self._stage == 3:
            return [each_cut(sizes, rank, self._num_ranks) for sizes in self._sizes]
        file = self._file(0)  # all ranks' partitions have the size of the first one's
        paddings = file.get("param_alignment_paddings", [()] * len(self._sizes))
        return [
            end_to_end(sizes, rank * length, length, padding)
            for sizes, length, padding in zip(self._sizes, _padded_lengths(file), paddings, strict=True)
        ]

    def partition_with(self, piece: Piece) -> Partition:
        """The saved partition that holds the first element of a piece."""
        place = next(place for place in self._places_of(piece.name) if _end(place.piece) > piece.in_parameter)
        return self._partitions(place.rank)[place.number]

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy weights and buffers into tensors of these names; the optimizer's fp32 weights where it has them."""
        others, tied = self.weights_without_optimizer(), self.model_states["shared_params"] or {}
        for alias, tensor in tensors.items():
            name = tied.get(alias, alias)
            if name in self._places:
                self.read(WEIGHTS, name, 0, tensor.view(-1))
            elif name in others:
                tensor.copy_(others[name])
            else:
                raise UserError(f"{self._checkpoint} has no weights of {name}; they are those of another model.")

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights and buffers by name: the optimizer's fp32 weights where it has them; tied ones are one tensor."""
        found = self.weights_without_optimizer()
        for sizes in self.model_states["param_shapes"] or ():
            for name, shape in sizes.items():
                found[name] = torch.empty(shape)
                self.read(WEIGHTS, name, 0, found[name].view(-1))
        tied = self.model_states["shared_params"] or {}
        return found | {alias: found[name] for alias, name in tied.items()}

    def weights_without_optimizer(self) -> dict[str, torch.Tensor]:
        """The model's own weights and buffers by name, in the precision of training.

        With ZeRO 3 a rank has no whole ones, and these are only what no optimizer holds.
        """
        module = self.model_states["module"]
        if self._stage < 3:
            return dict(module)
        found = {name: module[name] for name in self.model_states["buffer_names"]}
        paths = [
            self._checkpoint / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(self._num_ranks)
        ]
        ranks = [mapped_file(path)["frozen_param_fragments"] for path in paths]
        for name, shape in self.model_states["frozen_param_shapes"].items():
            whole = torch.cat([of_rank[name] for of_rank in ranks])
            found[name] = whole[: shape.numel()].view(shape)
        return found

    def twin_of(self, partition: Partition, rank: int, number: int) -> Partition | None:
        """The saved partition of a rank and number, if it is laid out as the given one."""
        if rank >= self._num_ranks or partition.pieces not in self._pieces[rank][number : number + 1]:
            return None
        twin = self._partitions(rank)[number]
        return twin if twin.size == partition.size else None

    @property
    def loss_scaler(self) -> Any:
        """DeepSpeed's loss scaler; None of its optimizers that have none."""
        return self._file(0).get("loss_scaler") if self._stage else None

    def read(self, key: str, name: str, start: int, target: torch.Tensor) -> None:
        """Copy elements of a parameter's weights (`WEIGHTS`) or of a state of it.

        Args:
            start: number of the first element; the parameter counted as if it were flat.
            target: flat; filled.
        """
        position, end = start, start + target.numel()
        for place in self._places_of(name):
            if position == end:
                break
            if _end(place.piece) <= position:
                continue
            partition = self._partitions(place.rank)[place.number]
            flat = (partition.weights if key == WEIGHTS else partition.state[key]).view(-1)
            piece = next(piece for piece in partition.pieces_of(key) if piece.name == name)
            last = min(end, _end(piece))
            at = piece.in_partition + position - piece.in_parameter
            read = flat[at : at + last - position]
            target[position - start : last - start].copy_(read)
            count(read.nbytes)
            position = last
        assert position == end, f"{name} has no element {position}"

    def _places_of(self, name: str) -> list[_Place]:
        if name not in self._places:
            raise UserError(f"{self._checkpoint} has no optimizer state of {name}; it is of another model.")
        return self._places[name]

    def _map_file(self, rank: int) -> dict[str, Any]:
        (path,) = self._checkpoint.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        return mapped_file(path, _CLASSES)["optimizer_state_dict"]

    def _read_partitions(self, rank: int) -> list[Partition]:
        if self._stage == 0:
            optimizer, weights = self.model_states["optimizer"], self.model_states["module"]
            flats = [weights[name] for name in self._names]
            lengths = [flat.numel() for flat in flats]
        elif self._stage == 3:
            file = self._file(rank)
            optimizer, flats = file["optimizer_state_dict"], file["fp32_flat_groups"]
            lengths = [flat.numel() for flat in flats]
        else:
            file = self._file(rank)
            optimizer, flats = file["base_optimizer_state"], file["single_partition_of_fp32_groups"]
            lengths = _padded_lengths(file)
        numbered = [(group, number) for group in optimizer["param_groups"] for number in group["params"]]
        partitions = [
            Partition(flat, length, pieces, group, optimizer["state"].get(number, {}))
            for flat, length, pieces, (group, number) in zip(flats, lengths, self._pieces[rank], numbered, strict=True)
        ]
        if self._stage in (1, 2) and _is_of_zero_optimizer(file):
            for partition, sizes in zip(partitions, self._sizes, strict=True):
                partition.whole = whole_momentum(partition.pieces, sizes, partition.group)
        return partitions


def _end(piece: Piece) -> int:
    return piece.in_parameter + piece.length


def _padded_lengths(file: dict[str, Any]) -> list[int]:
    lengths = [flat.numel() for flat in file["single_partition_of_fp32_groups"]]
    if not _is_of_zero_optimizer(file):
        return lengths
    return [length + padding for length, padding in zip(lengths, file["group_paddings"], strict=True)]


def _is_of_zero_optimizer(file: dict[str, Any]) -> bool:
    """Whether a file of ZeRO 1 or 2 is of DeepSpeed's ZeRO optimizer; the others are of its bf16 optimizer."""
    return "zero_stage" in file
