"""Puts one fault into a real training; on PYTHONPATH only where a test asks for it.

FAULT=<kind>:<step>:<rank>[:<attempt>]; kinds: nan, oom, exit2, hang, full.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import threading


def spoil(module):
    kind, step, rank = os.environ["FAULT"].split(":")[:3]
    original = module.RunTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        here = self.state.global_step + 1 == int(step) and os.environ.get("RANK") == rank
        if here and os.environ.get("TATARA_ATTEMPT") == "0":
            strike(kind, model)
        return original(self, model, inputs, *args, **kwargs)

    module.RunTrainer.training_step = training_step


def strike(kind, model):
    import torch

    if kind == "nan":
        handle = model.register_forward_hook(lambda *_: poison(handle, _[-1]))
    if kind == "oom":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if kind == "exit2":
        from workloads.errors import UserError

        raise UserError("expected a good row, found a bad one; fix it")
    if kind == "hang":
        threading.Event().wait()


def poison(handle, output):
    handle.remove()
    output.loss = output.loss * float("nan")
    return output


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "workloads.engine.training.trainer":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            spoil(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("FAULT"):
    sys.meta_path.insert(0, Finder())
