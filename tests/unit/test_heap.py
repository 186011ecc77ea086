"""Freed memory goes back to the system."""

import subprocess
import sys

SCRIPT = """
import psutil
from cluster.heap import give_back_freed

held = psutil.Process().memory_info
blocks = [bytearray(100_000) for _ in range(1000)]
last = blocks.pop()  # above all others in the heap, so that it cannot shrink by itself
del blocks
kept = held().rss
give_back_freed()
print((kept - held().rss) / 2**20, len(last))
"""


def test_what_was_freed_below_a_living_block_is_given_back():
    environment = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # blocks lie in the heap
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment
    )
    assert float(result.stdout.split()[0]) > 60
