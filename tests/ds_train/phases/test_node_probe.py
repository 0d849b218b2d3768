"""What a probe measures on two ranks, and how it marks a slow node."""

import re
from pathlib import Path

import pytest

from ds_train.phases import node_probe
from ds_train.phases.node_probe import RankReport, described
from tests.support.launching import launch


def _report(rank: int, host: str, **changes: object) -> RankReport:
    facts: dict = {"device": "H100", "memory_gib": 79.1, "clock": "1980 of 1980", "tflops": 700.0, "in_node": 300.0,
                   "to_neighbours": 40.0 if rank % 2 == 0 else None, "over_all": 35.0,
                   "write": 1.5 if rank % 2 == 0 else None}  # fmt: skip
    return RankReport(rank, host, **facts | changes)


def _nodes(number: int, **of_rank_3: object) -> list[RankReport]:
    """Two ranks a node, of which rank 3 differs."""
    return [_report(rank, f"node-{rank // 2}", **(of_rank_3 if rank == 3 else {})) for rank in range(2 * number)]


def _shown(reports: list[RankReport]) -> tuple[dict[str, list[str]], list[str]]:
    """Cells of each node's line, and the lines below the table."""
    text = "\n".join(described(reports)).splitlines()
    nodes = {line.split()[0]: re.split(r"  +", line) for line in text if line.startswith("node-")}
    return nodes, text[len(nodes) + 1 :]


@pytest.mark.parametrize("number", [2, 4])
def test_the_slowest_rank_of_a_node_counts_and_is_named(number: int) -> None:
    nodes, below = _shown(_nodes(number, tflops=420.0, clock="1200 of 1980"))
    assert len(nodes) == number and nodes["node-1"][4:6] == ["1200 of 1980", "420*"]
    assert [cell for name in nodes for cell in nodes[name] if cell.endswith("*")] == ["420*"]
    assert below == [
        f"all-reduce over all {2 * number} ranks: 35 GB/s",
        "slow: node-1: matmul TFLOP/s 420 (rank 3), others reach 700",
    ]


def test_small_differences_are_no_marks() -> None:
    nodes, below = _shown(_nodes(3, tflops=650.0))
    assert "*" not in str(nodes) and below[-1].startswith("no node is slow")


def test_each_rate_is_compared_by_itself() -> None:
    reports = [*_nodes(3, in_node=20.0), _report(6, "node-3", write=0.2), _report(7, "node-3")]
    assert _shown(reports)[1][1:] == [
        "slow: node-1: all-reduce in node GB/s 20 (rank 3), others reach 300",
        "slow: node-3: write GiB/s 0.2 (rank 6), others reach 1.5",
    ]


def test_one_rank_alone_has_no_all_reduce() -> None:
    alone = _report(0, "node-0", in_node=None, to_neighbours=None, over_all=None)
    nodes, below = _shown([alone])
    assert nodes["node-0"][1:] == ["1", "H100", "79.1", "1980 of 1980", "700", "1.5"] and below == []


@pytest.mark.parametrize(("firsts", "pairs"), [([0], []), ([0, 8], [(0, 8)]), ([0, 8, 16], [(0, 8), (8, 16), (16, 0)])])
def test_each_node_has_two_neighbours(firsts: list[int], pairs: list[tuple[int, int]]) -> None:
    assert [*node_probe._neighbours(firsts)] == pairs


def test_what_is_written_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_probe, "_WRITE_BYTES", 1 << 21)
    assert node_probe._written_gib_s(tmp_path) > 0 and [*tmp_path.iterdir()] == []


@pytest.mark.launch
def test_two_ranks_measure_their_node(tmp_path: Path) -> None:
    done = launch("ds_train/preflight.py", "pptrain", "--scratch_dir", str(tmp_path / "new"), "--probe", num_ranks=2)
    assert done.returncode == 0, done.stdout[-4000:]
    heading, line, below = done.stdout.splitlines()[-3:]
    assert heading.split()[:2] == ["node", "ranks"] and "neighbour" not in heading
    assert re.search(r"  2  CPU, \d+ cores  +[\d.]+  +–  +[\d.e-]+  +[\d.e-]+  +[\d.e-]+$", line), done.stdout
    assert re.fullmatch(r"all-reduce over all 2 ranks: [\d.e-]+ GB/s", below)
    assert [*tmp_path.iterdir()] == []
