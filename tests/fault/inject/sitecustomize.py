"""Puts one fault into a real training; on PYTHONPATH only where a test asks for it.

FAULT=<kind>:<step>:<rank>; kinds at a step: nan, oom, exit2, hang, kill, suspend, and wait, a rank
that goes on once it was asked to stop. At step 0: unborn, a rank that never begins, and absent, one
that never joins the others.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import threading
import time

KIND, STEP, RANK = (os.environ.get("FAULT") or "::").split(":")


def spoil(module):
    original = module.RunTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        here = self.state.global_step + 1 == int(STEP) and os.environ.get("RANK") == RANK
        if here and os.environ.get("TATARA_ATTEMPT") == "0":
            strike(KIND, model, self.session)
        return original(self, model, inputs, *args, **kwargs)

    module.RunTrainer.training_step = training_step


def strike(kind, model, session):
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
    if kind in ("kill", "suspend"):
        os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    while kind == "wait" and not session.stopping:
        time.sleep(0.01)


def poison(handle, output):
    handle.remove()
    output.loss = output.loss * float("nan")
    return output


def stay_away(module):
    if os.environ.get("RANK") == RANK:
        module.join = lambda hang_timeout: threading.Event().wait()


PLACES = {"absent": ("workloads.engine.distributed", stay_away)}


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        place, change = PLACES.get(KIND, ("workloads.engine.training.trainer", spoil))
        if name != place:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec


if KIND:
    sys.meta_path.insert(0, Finder())
if KIND == "unborn" and os.environ.get("RANK") == RANK:
    threading.Event().wait()
