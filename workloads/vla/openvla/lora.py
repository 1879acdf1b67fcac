"""Layers of OpenVLA that can take an adapter, by peft's names."""

from torch import nn

from workloads.vla.openvla.modeling import OpenVLA


def linear_suffixes(model: OpenVLA) -> list[str]:
    """Last name parts of every linear layer: what "all-linear" meant when OpenVLA was trained.

    As suffixes they also match the towers' patch embedding, a convolution named `proj`, and the
    layers that the forward pass never uses; `lm_head` is among them.
    """
    return sorted({name.rpartition(".")[2] for name in _linears(model)})


def used_linears(model: OpenVLA) -> list[str]:
    """Full names of the linear layers whose adapters get gradients: no unused tower parts."""
    unused = tuple(f"{name}." for name in model.unused_modules())
    return [name for name in _linears(model) if not name.startswith(unused)]


def _linears(model: OpenVLA) -> list[str]:
    heads = tuple(f"{name}." for name, module in model.named_children() if module in model.heads())
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not (heads and name.startswith(heads))
    ]
