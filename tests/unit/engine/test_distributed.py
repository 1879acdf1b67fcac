"""The process group of a rank, with a stand-in for the back end that a CPU build lacks."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

# A rank that torchrun started alone on a GPU. gloo over CUDA tensors alone refuses CPU tensors as
# NCCL does, which is all that matters here; what starts the group is accelerate and ours.
ALONE_ON_A_GPU = """
import torch
import torch.distributed as dist

init = dist.init_process_group

def without_nccl(backend=None, **kwargs):
    named = {"nccl": "cuda:gloo", "cuda:nccl,cpu:gloo": "cuda:gloo,cpu:gloo"}
    return init(named[backend], **kwargs)

dist.init_process_group = without_nccl
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.set_device = lambda device: None

from accelerate.state import PartialState
from workloads.engine import distributed

distributed.join(hang_timeout=600)
PartialState()
assert dist.is_initialized() and distributed.world_size() == 1
assert distributed.agree(True) and not distributed.agree(False)
assert distributed.totals([3]) == [3]
assert distributed.from_main("word") == "word" and distributed.gather(7) == [7]
distributed.leave()
print("agreed")
"""


def test_a_rank_alone_on_a_gpu_agrees_with_itself() -> None:
    """accelerate's own group, of NCCL alone, would refuse the tensor of the first agreed stop."""
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE_ON_A_GPU],
        env={**os.environ, **rank, "MASTER_PORT": "0"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith("agreed"), done.stderr[-2000:]
