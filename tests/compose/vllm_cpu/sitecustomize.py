"""What vLLM's build for CPUs and TRL lack to exchange weights without a GPU; for tests alone.

On a GPU weights go from trainer to engine over NCCL. Here they go through a file that both
containers see; the requests around it, and all that is generated, are the real ones. Beside this
file lies the metadata of a package `vllm`, by which vLLM tells that it was built for CPUs.
"""

import importlib.abc
import importlib.machinery
import os
import sys

FILE = os.environ.get("TATARA_TEST_WEIGHTS", "/workspace/outputs/.weights.safetensors")


def keep_plain_weights(module):
    """Linear layers pack their weights once; what is loaded later would never be used."""
    import torch

    def dispatch(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    module.dispatch_cpu_unquantized_gemm = dispatch


def receive_by_file(module):
    from safetensors.torch import load_file

    class ByFile(module.NCCLWeightTransferEngine):
        def init_transfer_engine(self, init_info):
            pass

        def start_weight_update(self):
            pass

        def update_weights(self, update_info):
            self.model.load_weights(load_file(FILE).items())

        def finish_weight_update(self):
            pass

    module.NCCLWeightTransferEngine = ByFile


def send_by_file(module):
    from safetensors.torch import save_file

    def init(self, device=0):
        self.communicator = object()

    def send(self, metadata, named_params):
        save_file({name: value.detach().clone() for name, value in named_params}, FILE)
        names, kinds, shapes = (list(part) for part in zip(*metadata, strict=True))
        info = {"names": names, "dtype_names": kinds, "shapes": shapes}
        self._start_weight_update()
        self._post(f"{self.base_url}/update_weights", json={"update_info": info})
        self._finish_weight_update()

    module.VLLMClient.init_communicator = init
    module.VLLMClient.update_named_params = send
    module.VLLMClient.close_communicator = lambda self: None


PATCHES = {
    "vllm.model_executor.layers.utils": keep_plain_weights,
    "vllm.distributed.weight_transfer.nccl_engine": receive_by_file,
    "trl.generation.vllm_client": send_by_file,
}


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            PATCHES[name](module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
