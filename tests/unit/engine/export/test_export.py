"""Export: from what every strategy leaves on disk to a folder that transformers loads."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.fake_hub import GOOD_TOKEN, OTHER_TOKEN, FakeHub
from tests.support.tiny_adapter import write_adapter
from tests.support.tiny_llama import make_config, make_model, make_tokenizer, write_tiny
from workloads import run as runs
from workloads.cli import main
from workloads.config.merge import Provenance
from workloads.engine.hub.upload import push
from workloads.engine.pretrained.adapter import add_adapter, load_adapter, save_adapters
from workloads.engine.pretrained.base import find_base, resolve
from workloads.engine.pretrained.files import WEIGHTS
from workloads.engine.pretrained.load import generation_settings
from workloads.errors import Retry, TataraError, UserError
from workloads.llm.config import LlmConfig
from workloads.llm.export import EXPORTER, export, keep_skeleton
from workloads.llm.model import load_for_use, load_model
from workloads.run import Run
from workloads.run.integrity import SEAL, publish, read_seal, seal, verify_checkpoint

pytestmark = pytest.mark.unit
INPUTS = torch.arange(5, 45).reshape(2, 20)


def make_run(folder: Path, **changes: Any) -> Run:
    """A run whose base is a folder beside it."""
    if not (folder / "base").exists():
        write_tiny(folder / "base", **changes.pop("shape", {}))
    settings: dict[str, Any] = {
        "workload": "llm",
        "name": "test",
        "summary": "a test",
        "data": {"source": "owner/rows", "prompt_suffix": " Please. "},
        "train": {"precision": "fp32"},
        **changes,
        "model": {"name": str(folder / "base"), **changes.get("model", {})},
    }
    run = Run(folder / "outputs" / "test" / "20260101-000000-abcd")
    runs.start(run, LlmConfig.model_validate(settings), Provenance({}), {})
    return run


def checkpoint(run: Run, step: int, fill: Any) -> Path:
    """A sealed checkpoint with whatever `fill(folder)` writes."""
    staged = run.checkpoints / f".staging-{step}"
    staged.mkdir(parents=True)
    fill(staged)
    seal(staged, {"step": step})
    final = run.checkpoints / f"checkpoint-{step}"
    publish(staged, final)
    return final


def whole(model: Any) -> Any:
    """As the Trainer of one rank or of DDP writes it, fp32 whatever it computes in."""
    return lambda folder: model.save_pretrained(folder)


def same_weights(folder: Path, model: Any, dtype: torch.dtype) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == dtype
    expected = {name: value.to(dtype) for name, value in model.state_dict().items()}
    assert set(loaded.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_a_plain_checkpoint(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    run = make_run(tmp_path, train={"precision": precision})
    checkpoint(run, 5, whole(make_model(seed=1)))
    checkpoint(run, 20, whole(make_model(seed=2)))
    told: list[str] = []
    done = export(run, report=told.append)
    assert (done.folder, done.kind, done.step) == (run.final, "model", 20)
    same_weights(run.final, make_model(seed=2), dtype)
    tokenizer = AutoTokenizer.from_pretrained(run.final)
    assert tokenizer.chat_template == make_tokenizer().chat_template
    assert tokenizer("a b")["input_ids"] == make_tokenizer()("a b")["input_ids"]
    assert "exported model of step 20" in told[-1]
    assert read_seal(run.final)["step"] == 20
    assert verify_checkpoint(run.final) == []
    assert not [path for path in run.path.iterdir() if path.name.startswith(".final")]


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    shape = {"tie_word_embeddings": True}
    run = make_run(tmp_path, shape=shape)
    checkpoint(run, 1, whole(make_model(seed=2, **shape)))
    export(run)
    assert "lm_head.weight" not in load_file(run.final / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(run.final)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    same_weights(run.final, make_model(seed=2, **shape), torch.float32)


def save_sharded(model: Any, folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    writer = dcp.FileSystemWriter(folder / "pytorch_model_fsdp_0")
    dcp.save({"model": model.state_dict()}, storage_writer=writer, no_dist=True)


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_in_torchs_distributed_format(tmp_path: Path, tied: bool) -> None:
    shape = {"tie_word_embeddings": tied}
    run = make_run(tmp_path, shape=shape, train={"precision": "bf16"})
    model = make_model(seed=2, **shape)
    checkpoint(run, 3, lambda folder: save_sharded(model, folder))
    export(run)
    same_weights(run.final, model, torch.bfloat16)


SHARDING = """
import os, sys, torch, torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from tests.support.tiny_llama import make_model

dist.init_process_group("gloo")
model = make_model(seed=2)
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
assert all(isinstance(value, DTensor) for value in model.parameters())
state = get_model_state_dict(model)
dcp.save({"model": state}, storage_writer=dcp.FileSystemWriter(sys.argv[1]))
dist.barrier()
dist.destroy_process_group()
# Threads of gloo that are still there when Python ends abort it in one of ten runs.
sys.stdout.flush()
os._exit(0)
"""


def test_shards_of_two_real_ranks(tmp_path: Path) -> None:
    script = tmp_path / "shard.py"
    script.write_text(SHARDING)
    run = make_run(tmp_path)

    def fill(folder: Path) -> None:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        words += ["--local-addr=127.0.0.1"]  # where the name of this host leads nowhere
        words += ["--nproc-per-node", "2", str(script), str(folder / "pytorch_model_fsdp_0")]
        env = {"PYTHONPATH": str(Path(__file__).parents[4]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, env={**env, "PATH": ""}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(list((folder / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2

    checkpoint(run, 3, fill)
    export(run)
    same_weights(run.final, make_model(seed=2), torch.float32)


def trained_adapter(base: Any, run: Run, name: str = "default") -> Any:
    adapter = run.config().adapter.model_copy(update={"name": name})
    model = add_adapter(base, adapter)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_B" in key:
                value.normal_(std=0.1)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUTS).logits


LORA = {"method": "lora", "r": 4, "alpha": 8, "dropout": 0}


@pytest.mark.parametrize("name", ["default", "poems"])
def test_an_adapter_alone(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path, adapter={**LORA, "name": name})
    model = trained_adapter(make_model(), run, name)
    checkpoint(run, 7, lambda folder: save_adapters(model, folder))
    assert export(run).kind == "adapter"
    assert not (run.final / "model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(run.final)
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)
    used = load_for_use(str(run.final), "fp32", print)
    assert used.base.model.name == str(tmp_path / "base")
    assert torch.allclose(logits(used.model), logits(model), atol=1e-5)


def test_an_adapter_merged(tmp_path: Path) -> None:
    run = make_run(tmp_path, adapter=LORA)
    model = trained_adapter(make_model(), run)
    checkpoint(run, 7, lambda folder: save_adapters(model, folder))
    done = export(run, merge=True)
    assert done.kind == "merged" and done.difference is not None
    loaded = AutoModelForCausalLM.from_pretrained(run.final)
    assert torch.allclose(logits(loaded), logits(model), atol=1e-4)
    assert "logits differ by at most" in (run.final / "README.md").read_text()


def test_an_adapter_over_random_weights_is_merged(tmp_path: Path) -> None:
    run = make_run(tmp_path, adapter=LORA, model={"random_init": True}, shape={"weights": False})
    model = trained_adapter(
        load_model(find_base(run.config().model, print), run.config(), print), run
    )
    checkpoint(run, 7, lambda folder: save_adapters(model, folder))
    assert export(run).kind == "merged"
    loaded = AutoModelForCausalLM.from_pretrained(run.final)
    assert torch.allclose(logits(loaded), logits(model), atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"use_dora": True, "modules_to_save": ["lm_head"]}])
@pytest.mark.parametrize("named_by_peft", [True, False])
def test_a_sharded_adapter(tmp_path: Path, more: dict[str, Any], named_by_peft: bool) -> None:
    """As accelerate shards one: the adapter's weights alone, by peft's names or the model's own."""
    import torch.distributed.checkpoint as dcp
    from peft import get_peft_model_state_dict

    run = make_run(tmp_path, adapter={**LORA, **more})
    model = trained_adapter(make_model(), run)
    state = {"model": get_peft_model_state_dict(model) if named_by_peft else model.state_dict()}

    def fill(folder: Path) -> None:
        writer = dcp.FileSystemWriter(folder / "pytorch_model_fsdp_0")
        dcp.save(state, storage_writer=writer, no_dist=True)

    checkpoint(run, 7, fill)
    export(run)
    assert torch.allclose(logits(load_adapter(make_model(), run.final)), logits(model), atol=1e-5)
    export(run, tmp_path / "whole", merge=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert torch.allclose(logits(loaded), logits(model), atol=1e-4)


def test_the_run_keeps_what_export_needs(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    model = make_model(seed=2)
    keep_skeleton(find_base(run.config().model, print), model, make_tokenizer(), run)
    checkpoint(run, 1, whole(model))
    shutil.rmtree(tmp_path / "base")
    export(run)
    same_weights(run.final, model, torch.float32)
    assert "license: mit" in (run.final / "README.md").read_text()


def test_the_model_that_was_truly_used_is_named(tmp_path: Path) -> None:
    wish = {"name": str(tmp_path / "nothing"), "fallbacks": [str(tmp_path / "base")]}
    run = make_run(tmp_path, adapter=LORA, model=wish)
    base = resolve(run.config(), print)
    keep_skeleton(base, make_model(), make_tokenizer(), run)
    model = trained_adapter(make_model(), run)
    checkpoint(run, 7, lambda folder: save_adapters(model, folder))
    export(run)
    own = json.loads((run.final / "adapter_config.json").read_text())
    assert own["base_model_name_or_path"] == str(tmp_path / "base")
    assert f"An adapter for `{tmp_path / 'base'}`" in (run.final / "README.md").read_text()


def test_the_card_tells_what_the_run_did(tmp_path: Path) -> None:
    run = make_run(tmp_path, optim={"learning_rate": 3e-4})
    checkpoint(run, 9, whole(make_model()))
    run.metric({"step": 8, "loss": 2.5})
    run.metric({"step": 9, "loss": 2.25, "eval_loss": 2.0})
    run.metric({"step": 10, "loss": 77777.0})
    export(run)
    text = (run.final / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "transformers" and front["datasets"] == ["owner/rows"]
    assert "base_model" not in front  # a local folder is no repository
    assert "optim.learning_rate: 0.0003" in text and '`" Please. "`' in text
    assert "training loss: 2.25" in text and "77777" not in text
    assert "torch: " in text and run.id in text and "Set the licence" in text
    score = {"task": "gsm8k", "rows": 32, "strict": 0.25, "flexible": 0.5, "marked": 1.0}
    (run.evaluation / "after").mkdir()
    (run.evaluation / "before").mkdir()
    (run.evaluation / "before" / "gsm8k.json").write_text(json.dumps({**score, "strict": 0}))
    (run.evaluation / "after" / "gsm8k.json").write_text(json.dumps(score))
    EXPORTER.refresh_card(run)
    text = (run.final / "README.md").read_text()
    assert "| gsm8k, after | 32 | 25.0% | 50.0% | 100.0% |" in text and "at step 9" in text
    assert text.index("gsm8k, before") < text.index("gsm8k, after")
    assert verify_checkpoint(run.final) == []  # sealed with the new card


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    checkpoint(run, 1, whole(make_model(seed=1)))
    newest = checkpoint(run, 2, whole(make_model(seed=2)))
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        export(run, checkpoint=newest)
    assert export(run).step == 1
    same_weights(run.final, make_model(seed=1), torch.float32)


def test_a_checkpoint_is_named_by_its_folder_or_its_name(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for step in (1, 2):
        checkpoint(run, step, whole(make_model(seed=step)))
    assert export(run, checkpoint=Path("checkpoint-1")).step == 1
    assert export(run, checkpoint=run.checkpoints / "checkpoint-2").step == 2
    with pytest.raises(UserError, match="checkpoint-3: expected model.safetensors"):
        export(run, checkpoint=Path("checkpoint-3"))


def test_nothing_to_export(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(UserError, match="expected a whole checkpoint"):
        export(run)
    checkpoint(run, 1, lambda folder: (folder / "trainer_state.json").write_text("{}"))
    with pytest.raises(UserError, match="found none of them"):
        export(run)


def test_wrong_weights_leave_the_old_export_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    checkpoint(run, 1, whole(make_model(seed=1)))
    export(run)
    good = make_model(seed=2).state_dict()
    norm = "model.norm.weight"
    for step, (wrong, reason) in enumerate(
        [
            ({key: value for key, value in good.items() if key != norm}, f"{norm} is missing"),
            ({**good, "more.weight": torch.zeros(2)}, "more.weight is not part"),
            ({**good, norm: torch.zeros(3)}, "of shape"),
            ({**good, norm: torch.full((32,), float("nan"))}, "not finite"),
        ],
        start=2,
    ):
        checkpoint(run, step, lambda folder, wrong=wrong: save_file(wrong, folder / WEIGHTS))
        with pytest.raises(TataraError, match=reason):
            export(run)
    same_weights(run.final, make_model(seed=1), torch.float32)
    assert not [path for path in run.path.iterdir() if path.name.startswith(".final")]


def test_values_that_overflow_half_precision_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, train={"precision": "fp16"})
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    checkpoint(run, 1, whole(model))
    with pytest.raises(TataraError, match="not finite in torch.float16"):
        export(run)


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    checkpoint(run, 1, whole(make_model()))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match="MiB needed"):
        export(run)
    assert not run.final.exists()
    assert not [path for path in run.path.iterdir() if path.name.startswith(".final")]


def test_large_models_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workloads.llm.export.SHARD_SIZE", "50KB")
    run = make_run(tmp_path)
    checkpoint(
        run, 1, lambda folder: make_model(seed=2).save_pretrained(folder, max_shard_size="40KB")
    )
    export(run)
    assert len(list(run.final.glob("model-*.safetensors"))) > 1
    same_weights(run.final, make_model(seed=2), torch.float32)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    run = make_run(tmp_path)
    checkpoint(run, 1, whole(make_model(seed=2)))
    return export(run).folder


def test_push(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub({}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(UserError, match="found none"):
            push(exported, "me/model")
        monkeypatch.setenv("HF_TOKEN", "hf_stale")
        with pytest.raises(UserError, match="401"):
            push(exported, "me/model")
        monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
        with pytest.raises(UserError, match="may only read there"):
            push(exported, "me/model")
        monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
        assert push(exported, "me/model").startswith(f"{hub.url}/me/model/commit/")
        files = hub.pushed["me/model"]
        assert set(files) == {path.name for path in exported.iterdir()} - {SEAL}
        assert files["model.safetensors"] == (exported / "model.safetensors").read_bytes()
        hub.mood = "too many requests"
        with pytest.raises(Retry, match="429"):
            push(exported, "me/model")


def test_a_whole_checkpoint_with_other_names_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    state = {f"inner.{name}": value for name, value in make_model().state_dict().items()}

    def fill(folder: Path) -> None:
        save_file(state, folder / "model.safetensors")
        make_config().save_pretrained(folder)

    checkpoint(run, 1, fill)
    with pytest.raises(UserError, match="expected the weights of a LlamaForCausalLM"):
        export(run)


def test_a_reference_to_code_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    """E-16: config.json of a published model often names code for older versions."""
    run = make_run(tmp_path)
    path = tmp_path / "base" / "config.json"
    fields = {**json.loads(path.read_text()), "auto_map": {"AutoConfig": "configuration_x.X"}}
    path.write_text(json.dumps(fields))
    checkpoint(run, 1, whole(make_model(seed=2)))
    export(run)
    assert "auto_map" not in json.loads((run.final / "config.json").read_text())
    assert "auto_map" in path.read_text()


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_a_model_needs_goes_with_it(tmp_path: Path) -> None:
    """E-16: where the profile allows it to run, from the pinned revision."""
    run = make_run(tmp_path, model={"trust_remote_code": True, "revision": "0" * 40})
    base = tmp_path / "base"
    (base / "own.py").write_text(OWN_CODE)
    fields = json.loads((base / "config.json").read_text())
    places = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    fields |= {"auto_map": places, "model_type": "own"}
    (base / "config.json").write_text(json.dumps(fields))
    found = find_base(run.config().model, print)
    model = load_model(found, run.config(), print)
    keep_skeleton(found, model, make_tokenizer(), run)
    shutil.rmtree(base)
    checkpoint(run, 1, whole(make_model(seed=2)))
    export(run)
    loaded = AutoModelForCausalLM.from_pretrained(run.final, trust_remote_code=True)
    assert type(loaded).__name__ == "OwnForCausalLM"
    assert torch.equal(logits(loaded), logits(make_model(seed=2)))


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        ({"temperature": 0.6, "do_sample": False}, ["temperature"]),
        ({"top_k": 5, "top_p": 0.5}, ["top_k", "top_p"]),
        ({"early_stopping": True, "num_beams": 1}, ["early_stopping"]),
        ({"length_penalty": 2.0}, ["length_penalty"]),
        ({"temperature": 0.5, "pad_token_id": -1}, ["temperature", "pad_token_id"]),
        ({"temperature": 0.6, "do_sample": True}, []),
    ],
)
def test_generation_settings_go_out_as_they_came_in_or_are_named(
    tmp_path: Path, settings: dict[str, Any], left_out: list[str]
) -> None:
    """E-5: a greedy model stays greedy, and what has no effect is left out by its name."""
    run = make_run(tmp_path)
    path = tmp_path / "base" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    told: list[str] = []
    base = find_base(run.config().model, told.append)
    model = load_model(base, run.config(), told.append)
    keep_skeleton(base, model, make_tokenizer(), run)
    checkpoint(run, 1, whole(model))
    export(run)
    written = json.loads((run.final / "generation_config.json").read_text())
    assert written.get("do_sample", False) == settings.get("do_sample", False)
    for name, value in settings.items():
        if name in left_out:
            assert name not in written
            assert any(f"{name} {value}" in line for line in told)
        else:
            assert written.get(name, value) == value


def test_generation_settings_that_nothing_can_use_are_named_by_the_check(tmp_path: Path) -> None:
    """E-5: before the training, as a mistake of the model's file."""
    run = make_run(tmp_path)
    path = tmp_path / "base" / "generation_config.json"
    path.write_text(json.dumps({"num_return_sequences": 3}))
    base = find_base(run.config().model, print)
    with pytest.raises(UserError, match=r"num_return_sequences.*correct its generation_config"):
        generation_settings(base, print)


def saved_adapter(folder: Path, seed: int, **changes: Any) -> Path:
    return write_adapter(folder / f"adapter{seed}", folder / "base", seed, **changes)


def deltas(model: Any, name: str) -> dict[str, torch.Tensor]:
    """What an adapter adds to the weight of each module."""
    layers = [(key, one) for key, one in model.named_modules() if hasattr(one, "get_delta_weight")]
    return {key: one.get_delta_weight(name) for key, one in layers if name in one.lora_A}


@pytest.mark.runs("tatara export RUN --adapters default=0.7,OTHER_RUN=0.3 --output DIR")
@pytest.mark.parametrize("merge", [False, True])
def test_adapters_are_combined_by_weight(
    tmp_path: Path, merge: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, adapter=LORA)
    model = trained_adapter(make_model(), run)
    checkpoint(run, 7, lambda folder: save_adapters(model, folder))
    other = saved_adapter(tmp_path, 3, r=8, targets=["q_proj", "v_proj"])
    third = saved_adapter(tmp_path, 5, r=2, use_rslora=True)
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.chdir(tmp_path)
    words = f"default=0.7,{other}=0.3,{third}=-0.5"
    more = ["--merge"] if merge else []
    assert main(["export", run.id, "--adapters", words, "--output", "sum", *more]) == 0
    wanted: dict[str, torch.Tensor] = {}
    for weight, folder in ((0.7, run.checkpoints / "checkpoint-7"), (0.3, other), (-0.5, third)):
        for key, delta in deltas(load_adapter(make_model(), folder), "default").items():
            wanted[key] = wanted.get(key, 0) + weight * delta
    if merge:
        whole = AutoModelForCausalLM.from_pretrained("sum").state_dict()
        plain = make_model().state_dict()
        for key, delta in wanted.items():
            name = f"{key.removeprefix('base_model.model.')}.weight"
            assert torch.allclose(whole[name] - plain[name], delta, atol=1e-4)
    else:
        found = deltas(load_adapter(make_model(), Path("sum")), "default")
        assert found.keys() == wanted.keys()
        assert all(torch.allclose(found[key], wanted[key], atol=1e-5) for key in wanted)
    assert not run.final.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("default=1,nothing=1", "expected default, a run or an adapter's folder, found 'nothing'"),
        ("default=1,base=1", "expected an adapter in base, found none"),
        ("default=1,adapter3=x", "expected NAME=WEIGHT, such as a=0.7, found 'adapter3=x'"),
        ("default=1,adapter3=nan", "expected NAME=WEIGHT"),
        ("default=1", "expected two adapters or more"),
        ("default=1,default=2", "expected each adapter once"),
        ("default=1,adapter4=1", "expected an adapter of .*base, found one of .*elsewhere"),
        ("default=1,adapter5=1", "expected plain LoRA in adapter5, found use_dora=True"),
    ],
)
def test_adapters_that_do_not_go_together_are_named(
    tmp_path: Path,
    words: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path, adapter=LORA)
    model = trained_adapter(make_model(), run)
    checkpoint(run, 7, lambda folder: save_adapters(model, folder))
    saved_adapter(tmp_path, 3)
    write_adapter(tmp_path / "adapter4", tmp_path / "elsewhere", 4)
    saved_adapter(tmp_path, 5, use_dora=True)
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.chdir(tmp_path)
    assert main(["export", run.id, "--adapters", words, "--output", "sum"]) == 2
    assert re.search(told, capsys.readouterr().err)
    assert not Path("sum").exists()
