"""TRL's Triton kernels of the fused head, in Triton's interpreter: no GPU, real arguments."""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

COMPARE = """
import torch
from trl.kernels import chunked_logprob as kernels

kernels._use_triton = lambda device: True
torch.manual_seed(0)
for rows, width, words, chunk in ((5, 16, 300, 128), (3, 8, 64, 64)):
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(words, width, requires_grad=True)
    targets = torch.randint(words, (rows,))
    found = kernels.ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, chunk, None, 1.0, ("log_probs", "entropy")
    )
    found[0].sum().backward()
    mine = [hidden.grad.clone(), weight.grad.clone()]
    hidden.grad = weight.grad = None
    whole = torch.log_softmax(hidden @ weight.T, dim=-1)
    wanted = whole.gather(1, targets[:, None])[:, 0]
    wanted.sum().backward()
    torch.testing.assert_close(found[0].float(), wanted, rtol=1e-4, atol=1e-4)
    entropy = -(whole.exp() * whole).sum(-1)
    torch.testing.assert_close(found[1].float(), entropy, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mine[0], hidden.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mine[1], weight.grad, rtol=1e-3, atol=1e-3)
print("the same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_of_the_fused_head_compute_what_whole_logits_do() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPARE],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith("the same"), done.stderr[-3000:]
