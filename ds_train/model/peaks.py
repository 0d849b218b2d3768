"""What accelerators can compute at most, by their names."""

import re

import torch

# FLOP/s in bf16 on the matrix units, dense, by words of the device's name; from the data sheets of NVIDIA (half of the
# figure "with sparsity" where only that is given) and AMD. Cards of one chip differ by their power and clocks.
PEAK_FLOPS = {
    "GB200": 2500e12,
    "B200": 2250e12,  # in an HGX board
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100 80GB HBM3": 989e12,
    "H100 SXM": 989e12,
    "H20": 148e12,
    "L40S": 362e12,
    "A100": 312e12,
    "A10": 125e12,
    "MI300X": 1307e12,
    "MI300A": 981e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s of a device in bf16, None if unknown."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_of(name: str) -> float | None:
    """The peak of the device of this name; None for one that is not listed, and for a part of one (MIG)."""
    words = set(re.findall(r"\w+", name))
    known = next((entry for entry in PEAK_FLOPS if set(entry.split()) <= words), None)
    return PEAK_FLOPS[known] if known and "MIG" not in words else None
