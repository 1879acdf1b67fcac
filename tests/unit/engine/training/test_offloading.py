"""Activations that wait in host memory for the backward pass."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from workloads.config.merge import resolve
from workloads.engine.training.trainer import offloaded
from workloads.errors import UserError

ROOT = Path(__file__).resolve().parents[4]
pytestmark = pytest.mark.unit


def test_on_a_cpu_it_is_said_that_nothing_changes() -> None:
    told: list[str] = []
    with offloaded(torch.nn.Linear(2, 2), told.append):
        pass
    assert told == [
        "train.activation_offloading changes nothing here: activations are in host memory"
    ]


def test_with_a_gpu_trl_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for TRL's context manager, which makes a CUDA stream as soon as it is made."""
    model, given = torch.nn.Linear(2, 2), []
    library = ModuleType("trl.models.activation_offloading")
    library.get_act_offloading_ctx_manager = lambda model: given.append(model) or "kept"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library.__name__, library)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert offloaded(model, pytest.fail) == "kept" and given == [model]


def test_vla_refuses_it() -> None:
    with pytest.raises(UserError, match=r"train\.activation_offloading: TRL does it"):
        resolve(ROOT / "profiles" / "vla.yaml", {}, {"train.activation_offloading": True})
