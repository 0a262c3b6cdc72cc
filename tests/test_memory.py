"""Memory that is kept changes how fast results come, and none of them."""

import subprocess
import sys

import pytest
import torch

from lesionseg.memory import keep_freed_memory

FAULTS = """
import ctypes, resource, sys
from lesionseg.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = libc.malloc(ctypes.c_size_t(2**26))
    ctypes.memset(block, 1, 2**26)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def printed_by(script, how):
    """The number that a script prints in a process of its own, which has done nothing before."""
    command = [sys.executable, "-c", script, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_keeping_freed_memory_changes_no_result():
    product = torch.rand(300, 300, generator=torch.Generator().manual_seed(0))
    before = product @ product
    keep_freed_memory()
    assert torch.equal(product @ product, before)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_a_block_freed_and_taken_again_is_not_cleared_again_by_the_system():
    faults = {how: printed_by(FAULTS, how) for how in ("keep", "default")}
    # A tenth rather than a number of pages, of which some systems make fewer and larger ones.
    assert faults["keep"] < faults["default"] / 10, faults


KEPT = """
import ctypes, sys, threading, psutil
from lesionseg.memory import return_freed_memory
if sys.argv[1] == "return":
    return_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def use():  # blocks as of photographs, the last one freed first, below a small one that stays
    blocks = [libc.malloc(ctypes.c_size_t(2**24)) for _ in range(2)]
    for block in blocks:
        ctypes.memset(block, 1, 2**24)
    small = libc.malloc(ctypes.c_size_t(1000))
    for block in blocks:
        libc.free(block)
before = psutil.Process().memory_info().rss
for _ in range(3):  # the first freed ones raise glibc's threshold
    for thread in (threads := [threading.Thread(target=use) for _ in range(4)]):
        thread.start()
        thread.join()
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_large_blocks_go_back_to_the_system_when_they_are_freed():
    kept = {how: printed_by(KEPT, how) for how in ("return", "default")}
    assert kept["return"] < 2**22 < kept["default"], kept


def test_imports_for_good_are_never_looked_through_and_what_follows_is():
    script = """
import gc
from lesionseg.memory import imported_for_good
with imported_for_good():
    assert not gc.isenabled()
    import torch
assert gc.isenabled()
known = {id(one) for one in gc.get_objects()}
assert id(vars(torch.nn.Module)) not in known and id(torch.nn.Module) not in known
assert id(later := [[]]) in {id(one) for one in gc.get_objects()}
try:
    with imported_for_good():
        raise ImportError
except ImportError:
    print(int(gc.isenabled()))
"""
    assert printed_by(script, "") == 1
