"""Code that only a GPU, or a library for GPUs, takes, with stand-ins that behave as torch, NVML and
the libraries document themselves; `test_cuda_list.py` knows which code that is.
"""

import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.support.planning import SIZES, profile
from tests.support.tiny_llama import make_model, write_tiny
from workloads import device
from workloads.config.sections import Model
from workloads.doctor import trial
from workloads.engine import finish
from workloads.engine.pretrained import load
from workloads.engine.pretrained.base import find_base
from workloads.engine.pretrained.files import quantisation
from workloads.engine.training.arguments import trainer_arguments
from workloads.engine.training.memory import memory_facts, start_measuring
from workloads.engine.training.out_of_memory import out_of_memory
from workloads.run import Run
from workloads.run.session import Session

pytestmark = pytest.mark.unit

GIB = 1 << 30


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One H100 as torch.cuda tells of it; gives the devices that modules are sent to, in order."""
    sent: list[str] = []
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=80 * GIB)
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_name": properties.name,
        "get_device_properties": properties,
        "mem_get_info": (50 * GIB, 80 * GIB),
        "memory_reserved": 20 * GIB,
        "max_memory_reserved": 28 * GIB,
        "max_memory_allocated": 25 * GIB,
        "reset_peak_memory_stats": None,
        "empty_cache": None,
        "is_bf16_supported": True,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)

    def to(self: nn.Module, place: Any, *args: Any, **kwargs: Any) -> nn.Module:
        sent.append(str(place))
        return self

    monkeypatch.setattr(PreTrainedModel, "to", to)
    return sent


def test_memory_of_a_run_is_the_cards(tmp_path: Path, gpu: list[str]) -> None:
    """The process has what is not free beyond torch's own, besides torch's highest."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    start_measuring()
    facts = memory_facts(profile(tmp_path, model=str(tmp_path)), 1)
    assert facts["card"] == "NVIDIA H100 80GB HBM3"
    beside = (80 - 50 - 20) * GIB
    assert facts["measured"] == {
        "allocated": 25 * GIB,
        "reserved": 28 * GIB,
        "process": 28 * GIB + beside,
    }


def test_the_doctor_computes_on_the_gpu(
    gpu: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In bf16 where the card has it, against fp32 on the host."""
    to, sent = torch.Tensor.to, []

    def on_host(self: torch.Tensor, place: torch.device, kind: torch.dtype) -> torch.Tensor:
        sent.append((str(place), kind))
        return to(self, "cpu", kind)

    monkeypatch.setattr(torch.Tensor, "to", on_host)
    assert trial.compute() == 0
    assert ("cuda", torch.bfloat16) in sent
    assert json.loads(capsys.readouterr().out)["device"] == "NVIDIA H100 80GB HBM3"


def test_the_doctors_ranks_speak_by_nccl_where_each_has_a_gpu(
    gpu: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one rank of one: its sum is its own number."""
    asked: list[Any] = []
    tensor = torch.tensor
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: asked.append(str(place)))
    monkeypatch.setattr(torch, "tensor", lambda values, device: (
        asked.append(str(device)), tensor(values))[1])  # fmt: skip
    for name in ("all_reduce", "barrier", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *tensors: None)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda name, timeout: asked.append(name)
    )
    monkeypatch.setattr("workloads.doctor.trial.os._exit", asked.append)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    trial.collective()
    assert asked == ["cuda:0", "nccl", "cuda:0", 0]
    assert json.loads(capsys.readouterr().out) == {"backend": "nccl", "device": "cuda"}


def test_out_of_memory_is_measured_against_the_card(tmp_path: Path, gpu: list[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    run = Run(tmp_path / "run")
    run.make()
    session = Session(run=run, _console=io.StringIO())
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    told = str(out_of_memory(profile(tmp_path, model=str(tmp_path)), session, 4, error))
    assert "measured 25.0 GiB at the highest, the GPU has 80.0 GiB" in told


def test_a_trainer_is_told_to_use_the_gpu(tmp_path: Path, gpu: list[str]) -> None:
    run = Run(tmp_path / "run")
    run.make()
    session = Session(run=run, _console=io.StringIO())
    arguments = trainer_arguments(profile(tmp_path, "optim.optimizer=adamw_8bit"), session, None)
    assert arguments["use_cpu"] is False and arguments["dataloader_pin_memory"] is True
    assert arguments["optim"] == "adamw_bnb_8bit"
    # One rank on one GPU has nothing to share, and DeepSpeed is asked for by name.
    zero = trainer_arguments(profile(tmp_path, "parallel.strategy=zero3"), session, None)
    assert zero["deepspeed"]["zero_optimization"]["stage"] == 3


def test_models_are_loaded_for_the_gpu(
    tmp_path: Path, gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention by the card's capability; for use on the card, for training on the host."""
    folder = write_tiny(tmp_path / "model")
    for has_kernel, expected in ((True, "flash_attention_2"), (False, "sdpa")):
        monkeypatch.setattr(load, "has_flash_kernel", lambda found=has_kernel: found)
        base, said = find_base(Model(name=str(folder)), print), []
        asked = load._arguments(base, load.TEXT, torch.bfloat16, torch.float32, said.append)
        assert asked["attn_implementation"] == expected
    ready = load.load_for_use(Model(name=str(folder)), "bf16", lambda own: load.TEXT, print)
    assert gpu == ["cuda"] and ready.model.training is False


def test_a_quantised_base_is_made_on_this_ranks_gpu(
    tmp_path: Path, gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = write_tiny(tmp_path / "model"), {}

    class Factory:
        @staticmethod
        def from_pretrained(place: Path, **arguments: Any) -> tuple[Any, dict[str, Any]]:
            asked.update(arguments)
            return make_model(), {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}

    base = find_base(Model(name=str(folder)), print)
    kind = load.Kind(Factory, load.TEXT.classes)
    load._pretrained(base, kind, {"quantization_config": object()}, print)
    assert asked["device_map"] == {"": 0}


def test_quantisation_is_bitsandbytes_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workloads.engine.pretrained.files.find_spec", lambda name: object())
    config = profile(tmp_path, "adapter.method=qlora")
    nf4 = quantisation(config.adapter, torch.bfloat16)
    assert nf4 is not None and nf4.load_in_4bit and nf4.bnb_4bit_quant_type == "nf4"
    assert nf4.bnb_4bit_quant_storage == nf4.bnb_4bit_compute_dtype == torch.bfloat16
    eight = quantisation(config.adapter.model_copy(update={"quantisation": "int8"}), torch.float16)
    assert eight is not None and eight.load_in_8bit


def test_what_training_held_is_given_back(gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(True))
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(free_memory=lambda: None))
    finish.forget(trainer)
    assert given == [True] and trainer.model is None and trainer.optimizer is None


def test_held_out_rows_are_asked_on_the_gpu(tmp_path: Path, gpu: list[str]) -> None:
    from workloads.grpo.evaluate.held_out import _at_work

    model = make_model().train()
    with _at_work(model, Session(run=Run(tmp_path), local_rank=1)):
        assert not model.training
    assert gpu == ["cuda:1"] and model.training


def test_questions_before_training_are_asked_on_the_gpu(
    tmp_path: Path, gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workloads.llm import finish as llm_finish

    monkeypatch.setattr(llm_finish, "load_rows", lambda data, split: [])
    monkeypatch.setattr(llm_finish, "evaluate_gsm8k", lambda *args, **kwargs: "asked")
    session: Any = Session(run=Run(tmp_path), local_rank=1)
    config: Any = SimpleNamespace(data=None, evaluation=SimpleNamespace(style="chat"))
    assert llm_finish._ask(config, session, make_model(), None, tmp_path, (0, 1)) == "asked"
    assert gpu == ["cuda:1"]


def test_a_reward_model_is_on_the_gpu(tmp_path: Path, gpu: list[str]) -> None:
    from transformers import LlamaForSequenceClassification

    from tests.support.tiny_llama import make_config, make_tokenizer
    from workloads.grpo.rewards.reward_model import RewardModel

    LlamaForSequenceClassification(make_config(num_labels=1)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert RewardModel(str(tmp_path))._loaded and gpu == ["cuda:0"]


def test_the_gpus_random_state_comes_back(monkeypatch: pytest.MonkeyPatch, gpu: list[str]) -> None:
    from workloads.grpo.trl_hooks import random_state, set_random_state

    states, brought = [torch.zeros(16, dtype=torch.uint8)], []
    monkeypatch.setattr(torch.cuda.random, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda.random, "set_rng_state_all", brought.append)
    noted = random_state()
    set_random_state(noted)
    assert noted["cuda"] is states and brought == [states]


def test_a_robot_policy_is_loaded_for_the_gpu(
    tmp_path: Path, gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workloads.vla import family
    from workloads.vla.config import VlaConfig
    from workloads.vla.openvla import loading
    from workloads.vla.policy import Policy

    asked: list[Any] = []
    monkeypatch.setattr(loading, "has_flash_kernel", lambda: True)
    monkeypatch.setattr(
        loading, "load_pretrained", lambda *args: asked.append(args) or make_model()
    )
    fields = {"workload": "vla", "name": "policy", "data": {"source": "x"}}
    for method, place in (("lora", "cpu"), ("qlora", "cuda:0")):
        config = VlaConfig.model_validate(
            {**fields, "model": {"name": "x"}, "adapter": {"method": method}}
        )
        loading.load_model(config, tmp_path, None, {}, print)
        assert asked[-1][2] == "flash_attention_2" and str(asked[-1][3]) == place
    places: list[torch.device] = []
    own = SimpleNamespace(load_policy=lambda *words: places.append(words[5]) or "policy")
    monkeypatch.setattr(family, "family_named", lambda kind, folder: own)
    (tmp_path / "config.json").write_text('{"model_type": "openvla"}')
    assert Policy.from_pretrained(tmp_path) == "policy" and places == [torch.device("cuda")]


def test_flash_attention_of_an_oft_head_takes_the_mask_as_it_is() -> None:
    """Other attentions take zeros where a position may look, and the least number elsewhere."""
    from workloads.vla.openvla.oft import OpenVLAOft

    mask = torch.tensor([[True, True, False]])
    for name, shape in (("flash_attention_2", (1, 5)), ("sdpa", (1, 1, 5, 5))):
        config = SimpleNamespace(_attn_implementation=name)
        model: Any = SimpleNamespace(language_model=SimpleNamespace(config=config))
        found = OpenVLAOft._attention(model, mask, 2, torch.bfloat16)
        assert found is not None and tuple(found.shape) == shape


def test_a_quantised_robot_policy_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from workloads.errors import UserError
    from workloads.vla.openvla.quantise import _library

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="expected bitsandbytes"):
        _library()
    library = ModuleType("bitsandbytes")
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    assert _library() is library


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_robot_policys_weights_are_packed_on_the_gpu(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read weight of a quantised layer, and nothing else: a bias, or another layer's."""
    from workloads.vla.openvla.quantise import quantised

    sent: list[tuple[str, dict[str, Any], str]] = []

    def packs(name: str) -> type:
        def init(self: Any, tensor: torch.Tensor, **settings: Any) -> None:
            assert tensor.device.type == "cpu"
            self.settings = settings

        def to(self: Any, device: torch.device) -> str:
            sent.append((name, self.settings, str(device)))
            return "packed"

        return type(name, (), {"__init__": init, "to": to})

    layers = {name: type(name, (nn.Linear,), {"__module__": "bitsandbytes.nn"})
              for name in ("Linear4bit", "Linear8bitLt")}  # fmt: skip
    library = ModuleType("bitsandbytes")
    library.nn = SimpleNamespace(  # type: ignore[attr-defined]
        **layers, Params4bit=packs("Params4bit"), Int8Params=packs("Int8Params")
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    owner = layers["Linear4bit" if kind == "nf4" else "Linear8bitLt"](4, 4)
    if kind == "nf4":
        for name, value in (("quant_type", "nf4"), ("compress_statistics", True),
                            ("quant_storage", torch.uint8)):  # fmt: skip
            setattr(owner.weight, name, value)
    weight, device = torch.zeros(4, 4), torch.device("cuda:0")
    assert quantised(owner, "weight", weight, device) == "packed"
    assert quantised(owner, "bias", weight, device) is None
    assert quantised(nn.Linear(4, 4), "weight", weight, device) is None
    ((name, settings, place),) = sent
    assert settings["requires_grad"] is False and place == "cuda:0"
    assert (name, settings.get("quant_type")) == (
        ("Params4bit", "nf4") if kind == "nf4" else ("Int8Params", None)
    )


@pytest.mark.parametrize(
    ("found", "package", "expected"),
    [
        (True, "", True),  # a prebuilt kernel
        (True, "VALUE = 1", True),
        (True, "raise ImportError('flash_attn_2_cuda.so: undefined symbol')", False),
        (False, "", False),
    ],
)
def test_flash_attention_is_its_package_or_a_prebuilt_kernel(
    found: bool, package: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that was compiled for another torch is installed, and cannot be loaded."""
    import transformers.utils

    from workloads.engine.pretrained.files import has_flash_kernel

    if package:
        (tmp_path / "flash_attn.py").write_text(package)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    asked: list[dict[str, bool]] = []
    monkeypatch.setattr(
        transformers.utils,
        "is_flash_attn_2_available",
        lambda **settings: asked.append(settings) or found,
    )
    assert has_flash_kernel() is expected and asked == [{"kernels_fallback_ok": True}]
    sys.modules.pop("flash_attn", None)


def test_packed_rows_are_compared_on_the_host_without_flash_attention() -> None:
    """Before training the model is on the host, whatever attention it will have on the GPU."""
    from workloads.llm.packed import _asked

    model = make_model().train()
    model.config._attn_implementation_internal = "flash_attention_2"
    with _asked(model):
        assert model.config._attn_implementation == "sdpa" and not model.training
        model(input_ids=torch.tensor([[1, 2, 3]]))
        # Put back by its name alone: there is no kernel to load here.
        model.set_attn_implementation = lambda name: setattr(  # type: ignore[method-assign]
            model.config, "_attn_implementation_internal", name
        )
    assert model.config._attn_implementation == "flash_attention_2" and model.training


def test_an_adapter_over_a_quantised_base_is_compared_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged into the base as it is; the quantised one is loaded where bitsandbytes is there."""
    from workloads.llm import export

    report = SimpleNamespace(line=lambda: "line", difference=0.0)
    for has_library in (True, False):
        methods: list[str] = []
        monkeypatch.setattr(export, "find_spec", lambda name, found=has_library: found or None)
        monkeypatch.setattr(export, "find_base", lambda model, report: None)
        monkeypatch.setattr(export, "load_model", lambda base, config, _, to=methods: to.append(
            config.adapter.method))  # fmt: skip
        monkeypatch.setattr(export, "merge_into", lambda *args, **kwargs: (make_model(), report))
        monkeypatch.setattr(export, "whole_model", lambda state, base: "whole")
        told: list[str] = []
        config = profile(tmp_path, "adapter.method=qlora")
        job: Any = SimpleNamespace(config=config, report=told.append, base=None)
        assert export.EXPORTER.merged(job, tmp_path)[0] == "whole"
        assert methods == (["lora", "qlora"] if has_library else ["lora"])
        assert bool(told) is not has_library


def test_ranks_of_several_nodes_know_nccls_interface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the person has set stays; a rank of this machine alone needs none."""
    from workloads.launch import supervisor

    monkeypatch.setattr(supervisor, "interface_to", lambda address: "eth7")
    monkeypatch.setattr(supervisor, "_master", lambda job: ("10.0.0.1", 1))
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    meeting: Any = SimpleNamespace(attempt=0, shared=True)
    for nodes, own, expected in ((2, {}, "eth7"), (1, {}, None),
                                 (2, {"NCCL_SOCKET_IFNAME": "ib0"}, "ib0")):  # fmt: skip
        job: Any = SimpleNamespace(env=own, is_local=False, ranks=1, nodes=nodes, gpus=1)
        env = supervisor._rank_env(job, Run(tmp_path), meeting)
        assert env.get("NCCL_SOCKET_IFNAME") == expected


class NVMLError(Exception):
    """What every call of NVML raises where it cannot answer."""

    def __init__(self, value: int = 999) -> None:
        self.value = value


class Nvml:
    """pynvml on a machine with an H100 and a GPU that has fallen off the bus.

    is_cut_up: by MIG, into slices of which the first is gone. has_memory: of its own.
    """

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NOT_FOUND, NVML_DEVICE_MIG_ENABLE = 3, 6, 1

    def __init__(self) -> None:
        self.is_open, self.is_cut_up, self.has_memory = False, False, True

    def nvmlInit(self) -> None:
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.159.04"

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        assert self.is_open
        if number == 1:
            raise NVMLError
        return number

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> int:
        if uuid not in (b"MIG-1", b"MIG-2"):
            raise NVMLError
        return 7

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        if not self.is_cut_up:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, place: int) -> int:
        if place == 0:
            raise NVMLError(self.NVML_ERROR_NOT_FOUND)
        return 7

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: int) -> int:
        return 0

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        if not self.has_memory:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        total = 10 * GIB if handle == 7 else 80 * GIB
        return SimpleNamespace(total=total, free=total - GIB, used=GIB)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return 9, 0

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return "MIG-1" if handle == 7 else "GPU-1"

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"NVIDIA H100 80GB HBM3 MIG 1g.10gb" if handle == 7 else b"NVIDIA H100 80GB HBM3"


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    found = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", found)  # type: ignore[arg-type]
    return found


def test_gpus_and_driver_by_nvml(nvml: Nvml) -> None:
    """A card that has fallen off the bus costs only itself; NVML is closed after each look."""
    (card,) = device.gpus({})
    assert (card.name, card.uuid, card.total) == ("NVIDIA H100 80GB HBM3", "GPU-1", 80 * GIB)
    assert card.capability == (9, 0) and card.has_bf16 and not nvml.is_open
    driver = device.driver()
    assert driver is not None and (driver.version, driver.cuda) == ("580.159.04", (13, 0))
    (slice_,) = device.gpus({"CUDA_VISIBLE_DEVICES": "MIG-1"})
    assert slice_.total == 10 * GIB


@pytest.mark.parametrize("wanted", [None, "0", "GPU-1"])
def test_a_gpu_that_is_cut_up_is_its_first_slice(nvml: Nvml, wanted: str | None) -> None:
    """CUDA shows one slice to a process, whatever is asked for, and no whole GPU."""
    nvml.is_cut_up = True
    env = {} if wanted is None else {"CUDA_VISIBLE_DEVICES": wanted}
    (found,) = device.gpus(env)
    assert (found.uuid, found.index, found.total) == ("MIG-1", 0, 10 * GIB)
    assert found.is_slice and "1g.10gb" in found.name


def test_of_several_slices_a_process_sees_the_first(nvml: Nvml) -> None:
    nvml.is_cut_up = True
    found = device.gpus({"CUDA_VISIBLE_DEVICES": "MIG-2,MIG-1"})
    assert [gpu.uuid for gpu in found] == ["MIG-2"]


def test_a_gpu_without_memory_of_its_own_has_the_hosts(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GB10 and Jetson share the host's: NVML does not support the question there."""
    nvml.has_memory = False
    monkeypatch.setattr(device, "host_memory", lambda: device.HostMemory(128 * GIB, 90 * GIB, None))
    (card,) = device.gpus({})
    assert (card.total, card.free) == (128 * GIB, 90 * GIB)


@pytest.mark.parametrize(("wanted", "refused"), [("7", True), ("-1", False), ("0", False)])
def test_a_number_of_no_gpu_is_not_the_cpu(
    wanted: str, refused: bool, nvml: Nvml, tmp_path: Path
) -> None:
    """-1 and nothing hide all GPUs, as people want it."""
    from workloads import check

    found = check._compute(profile(tmp_path), {"CUDA_VISIBLE_DEVICES": wanted})
    assert (found is not None and "names none of the 1 GPUs here" in found.found) is refused


def test_local_nodes_share_the_gpus_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA leaves out what stands behind an entry that names no GPU; UUIDs are names, too."""
    from workloads.launch.supervisor import _gpu_share

    for wanted, gpus, expected in (
        ("GPU-a,GPU-b,9,GPU-c", 2, ["GPU-a", "GPU-b"]),
        ("3,1", 2, ["3", "1"]),
        (None, 4, ["0,1", "2,3"]),
    ):
        env = {} if wanted is None else {"CUDA_VISIBLE_DEVICES": wanted}
        job: Any = SimpleNamespace(env=env, gpus=gpus, nodes=2)
        shares = [_gpu_share(job, node)["CUDA_VISIBLE_DEVICES"] for node in range(2)]
        assert shares == expected


def test_a_driver_that_answers_nothing_is_none(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any) -> Any:
        raise NVMLError(4)  # no permission

    for name in ("nvmlSystemGetCudaDriverVersion_v2", "nvmlDeviceGetCount"):
        monkeypatch.setattr(nvml, name, refuse)
    assert device.driver() is None and device.gpus({}) == ()


def test_gpus_that_torch_cannot_use_are_no_reason_to_train_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A driver that is too old for torch's CUDA: in torch's own words, before any work."""
    from workloads.engine import distributed
    from workloads.errors import UserError

    def init() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 12080). Please update"
        )

    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(distributed, "gpu_count", lambda: 0)
    distributed.join(600)
    monkeypatch.setattr(distributed, "gpu_count", lambda: 2)
    with pytest.raises(UserError, match=r"the 2 GPU .*found version 12080.*CUDA_VISIBLE_DEVICES="):
        distributed.join(600)


def test_sampling_has_a_random_state_of_its_own_on_the_ranks_gpu(
    gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many GPUs that a rank sees, torch would warn and keep the state of all."""
    from workloads.engine.generate.generate import _seeded

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda place: asked.append(("get", place)))
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, place: asked.append(("set", place))
    )
    before = torch.get_rng_state()
    with _seeded(5):
        torch.rand(1)
    assert asked == [("get", 3), ("set", 3)] and torch.equal(torch.get_rng_state(), before)


def test_the_monitor_opens_nvml_once_and_closes_it(nvml: Nvml) -> None:
    from workloads.monitor.reading.hardware import Hardware

    hardware = Hardware()
    assert nvml.is_open
    hardware.close()
    assert not nvml.is_open


def test_packages_for_gpus_are_asked_for_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by the setting that needs it; vLLM answers by itself where a GPU is there too."""
    import importlib.util

    from workloads import check
    from workloads.commands import speaking
    from workloads.grpo import check as grpo_check

    here: set[str] = set()
    found = importlib.util.find_spec
    is_here = lambda name, *words: object() if name in here else None  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", is_here)
    quantised = profile(tmp_path, "adapter.method=qlora")
    sharded = profile(tmp_path, "parallel.strategy=zero3")
    rollouts: Any = SimpleNamespace(stage="grpo", generation=SimpleNamespace(engine="vllm_server"))
    for config, name in ((quantised, "bitsandbytes"), (sharded, "deepspeed")):
        missing = check._options(config)
        assert missing is not None and name in missing.found
        here.add(name)
        assert check._options(config) is None
    lacking = grpo_check._engine(rollouts)
    assert lacking is not None and "needs the package vllm" in lacking.found
    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setattr(speaking, "find_spec", lambda name: object())
    asked: Any = SimpleNamespace(engine=None)
    for count, engine in ((1, "vllm"), (0, "transformers")):
        monkeypatch.setattr(device, "gpu_count", lambda count=count: count)
        assert speaking.engine_of(asked) == engine
