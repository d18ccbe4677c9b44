"""Large buffers come and go with every batch, and by default each is a mapping of its own: the kernel clears its pages one by
one, which cost a worker a tenth of its time.

So such buffers come from the heap, in which freed room is used again, and a heap gives back only what is far more than a
batch needs. Memory is bounded by what is in use at once, as before; it stays with the process for longer.
"""

from __future__ import annotations

import ctypes

import pyarrow as pa
from numpy._core import multiarray

#: Parameters of ``mallopt(3)`` and their values: from which size on a block is a mapping of its own (32 MiB is the most that
#: every glibc takes); from how much free room at its end a heap gives some back; how much it takes at once; how many heaps
#: there are, for what one thread's heap has kept another one's cannot use.
_PARAMETERS = {-3: 32 * 1024 * 1024, -1: 512 * 1024 * 1024, -2: 16 * 1024 * 1024, -8: 1}


def keep_large_buffers() -> None:
    """From now on this process keeps the room of large buffers. Does nothing where the C library has no ``mallopt``."""
    # Columns of Arrow batches from there too: what pyarrow keeps for itself it gives back within milliseconds.
    pa.set_memory_pool(pa.system_memory_pool())
    # Buffers are made for the most that may come, and only what does come is touched: not so in pages of two megabytes.
    whole_pages = getattr(multiarray, "_set_madvise_hugepage", None)
    if whole_pages is not None:
        whole_pages(False)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _PARAMETERS.items():
            mallopt(parameter, value)
