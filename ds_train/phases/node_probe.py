"""Measures every node of a job (``preflight --probe``), so that a slow one is found before it slows all others."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from socket import gethostname
from statistics import median

import torch
import torch.distributed as dist

from data_tools.base.files import existing_parent
from data_tools.base.processes import num_cores
from data_tools.base.text_table import aligned
from ds_train.model.footprint import GIB
from ds_train.ranks.collectives import NEVER, device_of, gather_objects
from ds_train.ranks.judge import Patience
from ds_train.ranks.watchdog import Watchdog, supervision
from ds_train.ranks.world import World

_WRITE_BYTES = 1 << 27
_NUM_REPEATS = 3  # of which the fastest counts; one more warms up
_SLOW = 0.9  # of what the others reach
_PIECE = 1 << 20


@dataclass(frozen=True)
class RankReport:
    """What one rank measured. None: nobody to measure it with, or not this rank's task.

    Attributes:
        clock: of the GPU under load, of its highest, in MHz; empty where there is no nvidia-smi.
        tflops: of a product of matrices, in TFLOP/s; bf16 on GPUs, fp32 on CPUs.
        in_node, to_neighbours, over_all: bandwidth of an all-reduce (bytes on each rank's links) in GB/s.
        write: to the scratch directory, while all nodes write, in GiB/s.
    """

    rank: int
    host: str
    device: str
    memory_gib: float
    clock: str
    tflops: float
    in_node: float | None
    to_neighbours: float | None
    over_all: float | None
    write: float | None


# Title → attribute: rates of a node.
_RATES = {
    "matmul TFLOP/s": "tflops", "all-reduce in node GB/s": "in_node", "to a neighbour GB/s": "to_neighbours",
    "write GiB/s": "write",
}  # fmt: skip


def probe(world: World, scratch_dir: Path) -> str:
    """Measure all ranks and describe their nodes. Collective.

    Args:
        scratch_dir: where to write, or below the nearest directory above it that exists.
    """
    with supervision(world, Patience()) as watchdog:
        reports = gather_objects(_measured(world, existing_parent(scratch_dir), watchdog))
    return "\n".join(described(reports))


def _measured(world: World, directory: Path, watchdog: Watchdog) -> RankReport:
    """What this rank measures, together with the others."""
    device = device_of(world)
    hosts = gather_objects(gethostname())
    nodes = [[rank for rank, host in enumerate(hosts) if host == name] for name in dict.fromkeys(hosts)]
    own = next(ranks for ranks in nodes if world.rank in ranks)
    tflops, clock = _matmul(device)

    # All-reduces, one at a time: among the ranks of each node, then of two neighbouring nodes, then of all.
    watchdog.progress("all-reduces within nodes")
    in_node = [_all_reduce(ranks, world, device) for ranks in nodes if len(ranks) > 1]
    between = []
    for one, next_one in _neighbours([ranks[0] for ranks in nodes]):
        watchdog.progress(f"all-reduce of ranks {one} and {next_one}")
        between.append(_all_reduce([one, next_one], world, device))
    watchdog.progress("all-reduce over all ranks")
    over_all = _all_reduce([*range(world.size)], world, device) if world.size > 1 else None

    watchdog.progress("writing", is_long=True)
    dist.barrier()
    write = _written_gib_s(directory) if world.rank == own[0] else None
    return RankReport(
        world.rank, hosts[world.rank], *_device_facts(device), clock, tflops,
        _fastest(in_node), _fastest(between), over_all, write,
    )  # fmt: skip


def _neighbours(firsts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of nodes' first ranks in a ring. Each node is in two of them, and the faster one is its own rate."""
    yield from pairwise(firsts)
    if len(firsts) > 2:
        yield firsts[-1], firsts[0]


def _fastest(rates: Sequence[float | None]) -> float | None:
    return max((rate for rate in rates if rate is not None), default=None)


def _device_facts(device: torch.device) -> tuple[str, float]:
    """Name and memory in GiB."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.name, properties.total_memory / GIB
    return f"CPU, {num_cores()} cores", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The shortest time of some repetitions."""
    times = []
    for _ in range(_NUM_REPEATS + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _matmul(device: torch.device) -> tuple[float, str]:
    """TFLOP/s of products of matrices, and the clock while they are computed."""
    is_gpu = device.type == "cuda"
    size, count = (8192, 20) if is_gpu else (512, 4)
    left = torch.ones(size, size, dtype=torch.bfloat16 if is_gpu else torch.float32, device=device)

    def multiply() -> None:
        for _ in range(count):
            left @ left

    seconds = _seconds(device, multiply)
    multiply()  # kernels that are still running while the clock is read
    clock = _clock(device) if is_gpu else ""
    return 2 * size**3 * count / seconds / 1e12, clock


def _clock(device: torch.device) -> str:
    """MHz now and at most, as nvidia-smi shows them; empty without it."""
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ["nvidia-smi", f"--id={uuid}", "--query-gpu=clocks.sm,clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return " of ".join(done.stdout.strip().split(", "))


def _all_reduce(ranks: Sequence[int], world: World, device: torch.device) -> float | None:
    """GB/s on each rank's links in an all-reduce of these ranks; None for the others. All must call it."""
    group = dist.new_group([*ranks], timeout=NEVER)
    rate = None
    if world.rank in ranks:
        values = torch.ones(1 << (26 if device.type == "cuda" else 20), device=device)
        seconds = _seconds(device, lambda: dist.all_reduce(values, group=group))
        rate = 2 * (len(ranks) - 1) / len(ranks) * values.nbytes / seconds / 1e9
        dist.destroy_process_group(group)
    dist.barrier()
    return rate


def _written_gib_s(directory: Path) -> float:
    """GiB/s of a file that is written, and is on the disk at the end. It is gone afterwards."""
    piece = os.urandom(_PIECE)  # no file system can compress it
    started = time.perf_counter()
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(_WRITE_BYTES // _PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        return _WRITE_BYTES / (time.perf_counter() - started) / GIB


def described(reports: Sequence[RankReport]) -> Iterator[str]:
    """A line for each node, with the rates of its slowest rank; then which nodes are slow.

    A rate is marked with * if it is the lowest of all nodes and more than a tenth below that of the others.
    """
    hosts = list(dict.fromkeys(report.host for report in reports))
    nodes = [[report for report in reports if report.host == host] for host in hosts]
    columns = {title: [_lowest(ranks, name) for ranks in nodes] for title, name in _RATES.items()}
    columns = {title: found for title, found in columns.items() if any(found)}
    marked = {title: _slow_node([one and one[0] for one in found]) for title, found in columns.items()}
    table = [["node", "ranks", "device", "memory GiB", "clock MHz", *columns]]
    for number, ranks in enumerate(nodes):
        devices = ", ".join(dict.fromkeys(report.device for report in ranks))
        facts = [f"{min(report.memory_gib for report in ranks):.1f}", min(report.clock for report in ranks) or "–"]
        cells = [_cell(found[number], is_marked=marked[title] == number) for title, found in columns.items()]
        table.append([hosts[number], str(len(ranks)), devices, *facts, *cells])
    yield aligned(table)
    if len(reports) > 1:
        yield f"all-reduce over all {len(reports)} ranks: {min(report.over_all or 0 for report in reports):.3g} GB/s"
    for title, slow in marked.items():
        if slow is not None and (slowest := columns[title][slow]):
            usual = _reference([one and one[0] for one in columns[title]])
            yield f"slow: {hosts[slow]}: {title} {slowest[0]:.3g} (rank {slowest[1]}), others reach {usual:.3g}"
    if len(hosts) > 1 and not any(slow is not None for slow in marked.values()):
        yield "no node is slow: no rate is more than a tenth below that of the others"


def _lowest(ranks: Sequence[RankReport], name: str) -> tuple[float, int] | None:
    """The lowest rate among the ranks of a node, and whose it is."""
    return min(((rate, report.rank) for report in ranks if (rate := getattr(report, name)) is not None), default=None)


def _cell(found: tuple[float, int] | None, *, is_marked: bool) -> str:
    return "–" if found is None else f"{found[0]:.3g}{'*' if is_marked else ''}"


def _reference(rates: Sequence[float | None]) -> float:
    """What to expect of a node: the middle of all, and of two the faster one."""
    known = [rate for rate in rates if rate is not None]
    return max(known) if len(known) < 3 else median(known)


def _slow_node(rates: Sequence[float | None]) -> int | None:
    """The number of the slowest node, if it is slow."""
    known = [(rate, number) for number, rate in enumerate(rates) if rate is not None]
    if not known:
        return None
    lowest, number = min(known)
    return number if lowest < _SLOW * _reference(rates) else None
