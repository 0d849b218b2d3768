"""How this process gets memory from its host."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # numbers of malloc.h


def keep_freed_memory() -> None:
    """Have malloc keep what is freed for what is allocated next, instead of giving it back.

    A step on a CPU allocates and frees the same large tensors again and again. By default each of them is a mapping of
    its own, whose pages the kernel clears one by one when they are first written: an eighth of the time of a step of
    Pythia-160m and more. The price is memory in holes, a tenth to a fifth of the peak there.
    Does nothing where malloc has no such settings (only glibc has).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
