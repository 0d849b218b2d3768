"""The pieces of all ranks are all elements of all parameters, once, where ZeRO puts them."""

import pytest

from ds_train.checkpoints.partitions import Piece, each_cut, end_to_end

SIZES = {"matrix": 35, "bias": 5, "one": 1, "last": 12}


def elements(pieces: list[Piece]) -> list[tuple[str, int]]:
    return [(piece.name, piece.in_parameter + n) for piece in pieces for n in range(piece.length)]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7, 60])
def test_parameters_end_to_end_are_cut_into_equal_partitions(num_ranks: int) -> None:
    length = -(-sum(SIZES.values()) // num_ranks)
    ranks = [end_to_end(SIZES, rank * length, length) for rank in range(num_ranks)]
    assert [found for pieces in ranks for found in elements(pieces)] == [
        (name, n) for name, size in SIZES.items() for n in range(size)
    ]
    for pieces in ranks:  # without gaps
        assert [piece.in_partition for piece in pieces] == [
            sum(piece.length for piece in pieces[:n]) for n in range(len(pieces))
        ]


def test_padding_between_parameters_belongs_to_none() -> None:
    first, second = (end_to_end(SIZES, start, 32, [1, 3, 0, 0]) for start in (0, 32))
    assert first == [Piece("matrix", 0, 0, 32)]
    assert second == [
        Piece("matrix", 32, 0, 3),
        Piece("bias", 0, 4, 5),
        Piece("one", 0, 12, 1),
        Piece("last", 0, 13, 12),
    ]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7, 60])
def test_each_parameter_is_cut_into_equal_shares(num_ranks: int) -> None:
    ranks = [each_cut(SIZES, rank, num_ranks) for rank in range(num_ranks)]
    found = sorted(element for pieces in ranks for element in elements(pieces))
    assert found == sorted((name, n) for name, size in SIZES.items() for n in range(size))
    shares = {name: -(-size // num_ranks) for name, size in SIZES.items()}
    starts = {name: sum(list(shares.values())[:n]) for n, name in enumerate(shares)}
    assert all(piece.in_partition == starts[piece.name] for pieces in ranks for piece in pieces)
