"""Heads, loss, the whole forward and online inference of RoboVLMs' Kosmos-2, from its numbers."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.zero_shards import flip
from workloads.cli import main
from workloads.config.merge import resolve
from workloads.errors import UserError
from workloads.vla.policy import Observation, Policy
from workloads.vla.robovlms import load_pretrained
from workloads.vla.robovlms.actions import command, normalise
from workloads.vla.robovlms.backbones import usable_tokens
from workloads.vla.robovlms.heads import GptHead, Head, History, LstmHead, policy_loss
from workloads.vla.robovlms.loading import empty, random_policy, tokenizer
from workloads.vla.robovlms.modeling import HEADS, PolicyModel
from workloads.vla.robovlms.policy import HeadPolicy
from workloads.vla.robovlms.spec import HeadSize, PolicySpec

pytestmark = pytest.mark.golden
HERE = Path(__file__).parent / "robovlms"
TINY = Path(__file__).resolve().parents[2] / "data/demo/tiny-kosmos2"
SIZE = HeadSize(features=32, hidden=48)
EXPECTED = json.loads((HERE / "window_expected.json").read_text())["cases"]
LOSSES = json.loads((HERE / "expected.json").read_text())["cases"]
BACKBONE = {"model_type": "kosmos-2", **json.loads((HERE / "kosmos2_config.json").read_text())}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _stored(name: str) -> dict[str, Tensor]:
    """Weights and inputs are stored as float16, which is exact."""
    found = load_file(HERE / f"{name}.safetensors")
    return {
        key: value.float() if value.is_floating_point() else value for key, value in found.items()
    }


def _head(kind: str, pool: bool = False) -> Head:
    head = HEADS[kind](replace(SIZE, pool=pool))
    stored = _stored(f"{kind}_weights") | _stored("mlp_heads_weights")
    # A GPT's file holds its causal mask too, which is no weight.
    masks = (".attn.bias", ".attn.masked_bias")
    head.load_state_dict({name: v for name, v in stored.items() if not name.endswith(masks)})
    return head.eval()


def _policy(kind: str, attention: str = "sdpa", **settings: Any) -> PolicyModel:
    policy = empty(PolicySpec(BACKBONE, kind, SIZE, **settings), attention)
    policy.act_head = _head(kind)
    weights = {
        name.removeprefix("model."): value for name, value in _stored("window_weights").items()
    }
    missing, unknown = policy.load_state_dict(weights, strict=False)
    # The output layer is tied to the embeddings, the head is loaded already.
    assert not unknown
    left = [name for name in missing if not name.startswith("act_head.")]
    assert left == ["backbone.text_model.lm_head.weight"]
    policy.backbone.tie_weights()
    return policy.eval()


def _seen(static: Tensor, hand: Tensor | None = None) -> Tensor:
    """Pixels [B, W, cameras, 3, S, S], the static camera first."""
    return torch.stack([static] if hand is None else [static, hand], dim=2)


def _close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= tolerance


@pytest.mark.parametrize("kind", ["lstm", "fc", "gpt"])
@pytest.mark.parametrize("how", ["none", "pooling"])
def test_heads(kind: str, how: str) -> None:
    io, head = _stored("heads_io"), _head(kind, pool=how == "pooling")
    end = "4" if kind == "fc" else ""
    arm, gripper = head(io[f"{kind}_{how}.input{end}"])
    _close(arm, io[f"{kind}_{how}.arm{end}"], 1e-5)
    _close(gripper, io[f"{kind}_{how}.gripper_logits{end}"], 1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gpt"])
@pytest.mark.parametrize("how", ["none", "pooling"])
def test_one_step_at_a_time(kind: str, how: str) -> None:
    """Longer than the window: what is older is forgotten."""
    io, head = _stored("heads_io"), _head(kind, pool=how == "pooling")
    assert isinstance(head, LstmHead | GptHead)
    steps = io[f"{kind}_{how}.online_input"]
    history = History(head, window=8)
    for _ in range(2):  # the same again after a reset
        found = [history.step(steps[:, number]) for number in range(steps.shape[1])]
        _close(torch.cat([arm for arm, _ in found], 1), io[f"{kind}_{how}.online_arm"], 1e-5)
        logits = torch.cat([gripper for _, gripper in found], 1)
        _close(logits, io[f"{kind}_{how}.online_gripper_logits"], 1e-5)
        history.reset()


@pytest.mark.parametrize(
    "case",
    ["nomask", "mask", "mask_all_ones", "big_errors_nomask", "big_errors_mask", "zero_logits"],
)
def test_loss(case: str) -> None:
    io, expected = _stored("heads_io"), LOSSES[f"loss_{case}"]
    part = {name: io.get(f"loss_{case}.{name}") for name in ("label_arm", "label_gripper")}
    arm = io[f"loss_{case}.arm"].requires_grad_()
    logits = io[f"loss_{case}.gripper_logits"].requires_grad_()
    mask = io.get(f"loss_{case}.chunk_mask")
    assert part["label_arm"] is not None and part["label_gripper"] is not None
    loss = policy_loss(arm, logits, part["label_arm"], part["label_gripper"], mask)
    loss.total.backward()
    for found, name in (
        (loss.arm, "loss_arm"), (loss.gripper, "loss_gripper"),
        (loss.total, "loss_total_ratio_0.01"),
    ):  # fmt: skip
        assert found.item() == pytest.approx(expected[name], rel=1e-5, abs=1e-9)
    assert loss.gripper_accuracy.item() == pytest.approx(expected["acc_gripper"], abs=1e-6)
    assert arm.grad is not None and logits.grad is not None
    _close(arm.grad, io[f"loss_{case}.grad_arm"], 1e-6)
    _close(logits.grad, io[f"loss_{case}.grad_gripper_logits"], 1e-6)


def test_a_mask_without_an_entry_is_no_nan() -> None:
    nothing = torch.zeros(1, 2, 3)
    loss = policy_loss(
        torch.ones(1, 2, 3, 6), nothing[..., None], torch.zeros(1, 2, 3, 6), nothing, nothing
    )
    assert loss.total.item() == 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", EXPECTED)
def test_window_forward(case: str, attention: str) -> None:
    io, expected = _stored("window_io"), EXPECTED[case]
    kind = "fc" if case.endswith("_fc") else "lstm"
    history = "interleaved" if case.startswith("interleaved") else "head"
    # A padded row has its action token behind eos and the pads but one, as it was trained there.
    policy = _policy(kind, attention, history=history, action_before_eos=False)
    steps = 1 if case == "one_step_fc" else 8
    rgb, hand = io["rgb"][:, :steps], io["hand_rgb"][:, :steps]
    gripper = hand if case in ("both_cameras", "padded_text", "interleaved_fc") else None
    end = "_padded" if case == "padded_text" else ""
    text, text_mask = io[f"text{end}"], io[f"text_mask{end}"]

    _close(policy.image_tokens(rgb.flatten(0, 1)), io[f"{case}.image_embeds_static"], 1e-6)
    if gripper is not None:
        _close(policy.image_tokens(hand.flatten(0, 1)), io[f"{case}.image_embeds_hand"], 1e-6)
    if f"{case}.inputs_embeds" in io:
        embeds = policy.embedded(_seen(rgb, gripper), text, text_mask).embeds
        _close(embeds, io[f"{case}.inputs_embeds"], 1e-6)
    out = policy(_seen(rgb, gripper), text, text_mask)
    assert torch.equal(out.attention_mask, io[f"{case}.attention_mask"])
    _close(out.action_states, io[f"{case}.action_hs"], 5e-6)
    _close(out.arm, io[f"{case}.arm"], 1e-6)
    _close(out.gripper_logits, io[f"{case}.gripper_logits"], 1e-6)

    mask = None if case == "static_only" else io["chunk_mask"][:, :steps]
    arm_labels, gripper_labels = io["arm_labels"][:, :steps], io["gripper_labels"][:, :steps]
    loss = policy_loss(out.arm, out.gripper_logits, arm_labels, gripper_labels, mask)
    assert loss.arm.item() == pytest.approx(expected["loss_arm_act"], rel=1e-6)
    assert loss.gripper.item() == pytest.approx(expected["loss_gripper_act"], rel=1e-6)
    assert loss.total.item() == pytest.approx(expected["total"], rel=1e-6)
    assert loss.gripper_accuracy.item() == pytest.approx(expected["acc_gripper_act"], abs=1e-6)
    if "grad_norms" in expected:
        loss.total.backward()
        _check_gradients(policy, expected["grad_norms"], io, case)


def _check_gradients(
    policy: PolicyModel, norms: dict[str, float], io: dict[str, Tensor], case: str
) -> None:
    gradients = {f"model.{name}": value.grad for name, value in policy.named_parameters()}
    for name, norm in norms.items():
        gradient = gradients[name]
        found = 0.0 if gradient is None else gradient.norm().item()
        assert found == pytest.approx(norm, rel=1e-4) if norm >= 1e-12 else found < 1e-11, name
    seen = [key for key in io if key.startswith(f"{case}.grad.")]
    assert len(seen) == 6
    for key in seen:
        gradient = gradients[key.removeprefix(f"{case}.grad.")]
        assert gradient is not None
        _close(gradient, io[key], 1e-5 * io[key].abs().max().item())


def test_the_names_are_those_of_a_checkpoint() -> None:
    keys = json.loads((HERE / "window_keys.json").read_text())
    own = {
        f"model.{name}": list(value.shape) for name, value in _policy("lstm").state_dict().items()
    }
    expected = keys if isinstance(keys, dict) else dict(keys)
    assert own == {name: list(shape) for name, shape in expected.items()}


@torch.no_grad()
def test_online() -> None:
    """one frame a call, from images to what the robot is sent."""
    io, policy = _stored("window_io"), _policy("lstm")
    assert isinstance(policy.act_head, LstmHead)
    history = History(policy.act_head, window=8)
    text, text_mask = io["text"][:1], io["text_mask"][:1]
    for number in range(io["online.action"].shape[0]):
        frame = slice(number, number + 1)
        rgb, hand = io["online.rgb"][:, frame], io["online.hand_rgb"][:, frame]
        states, _ = policy.states(_seen(rgb, hand), text, text_mask)
        arm, logits = history.step(states[:, 0])
        _close(arm, io["online.arm"][:, frame], 1e-6)
        _close(logits, io["online.gripper_logits"][:, frame], 1e-6)
        sent = command(arm[0, 0, 0].numpy(), logits[0, 0, 0].numpy(), -0.65, 0.65)
        _close(torch.from_numpy(sent), io["online.action"][number], 1e-6)


@pytest.mark.parametrize(("kind", "tolerance"), [("f64", 1e-12), ("f32", 1e-6)])
@pytest.mark.parametrize(("name", "low", "high"), [("065", -0.65, 0.65), ("asym", -0.3, 0.9)])
def test_normalised_arm(kind: str, tolerance: float, name: str, low: float, high: float) -> None:
    stored = np.load(HERE / "normalize.npz")
    found = normalise(stored[f"action_{kind}"], low, high)
    assert np.abs(found - stored[f"norm_{name}_{kind}"])[:, :-1].max() <= tolerance


# Names as DDP, Lightning over it, torch.compile and FSDP leave them.
_WRAPPED = {
    "module": lambda name: f"module.{name.removeprefix('model.')}",
    "lightning-ddp": lambda name: f"module.{name}",
    "ddp-inside": lambda name: f"model.module.{name.removeprefix('model.')}",
    "compiled": lambda name: f"_orig_mod.{name}".replace(".act_head.", ".act_head._orig_mod."),
    "fsdp": lambda name: name.replace("act_head.", "act_head._fsdp_wrapped_module."),
}


def _checkpoint(folder: Path, form: str, kind: str = "lstm") -> Path:
    """A folder as people have it, of the reference's weights."""
    weights = {name: value.half() for name, value in _stored("window_weights").items()}
    head = _stored(f"{kind}_weights") | _stored("mlp_heads_weights")
    weights |= {f"model.act_head.{name}": value.half() for name, value in head.items()}
    folder.mkdir()
    if form == "safetensors":
        save_file(weights, folder / "policy.safetensors")
    elif form in _WRAPPED:
        stored = {_WRAPPED[form](name): value for name, value in weights.items()}
        torch.save({"model_state_dict": stored}, folder / "policy.pt")
    else:
        repeated = {f"model.lm_head.{name}": value.half() for name, value in head.items()}
        torch.save({"state_dict": weights | repeated, "epoch": 3}, folder / "policy.pt")
    (folder / "backbone").mkdir()
    shutil.copy(HERE / "kosmos2_config.json", folder / "backbone/config.json")
    config = {
        "model": "kosmos", "model_config": "backbone/config.json", "window_size": 8,
        "fwd_pred_next_n": 10,
        "act_head": json.loads((HERE / "window_expected.json").read_text())["act_head"]
        | {"type": {"lstm": "LSTMDecoder", "fc": "FCDecoder", "gpt": "GPTDecoder"}[kind]},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("form", ["state_dict", "safetensors", *_WRAPPED])
@torch.no_grad()
def test_a_checkpoint_answers(form: str, tmp_path: Path) -> None:
    policy = load_pretrained(_checkpoint(tmp_path / "run", form))
    io = _stored("window_io")
    out = policy(_seen(io["rgb"], io["hand_rgb"]), io["text"], io["text_mask"])
    _close(out.arm, io["both_cameras.arm"], 1e-6)
    _close(out.gripper_logits, io["both_cameras.gripper_logits"], 1e-6)


def test_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path / "run", "safetensors")
    file, config = folder / "policy.safetensors", folder / "config.json"
    whole, said = load_file(file), json.loads(config.read_text())

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            load_pretrained(folder)

    save_file({name: value for name, value in whole.items() if "bias_ih_l3" not in name}, file)
    refused("found no act_head.rnn.bias_ih_l3")
    save_file(whole | {"model.more": torch.zeros(1)}, file)
    refused("found unknown more")
    save_file(whole | {"model.action_token": torch.zeros(3)}, file)
    refused(r"action_token of shape \[32\], found \[3\]")
    file.write_bytes(b"x" * 20)
    refused("policy.safetensors: expected safetensors, found")
    file.unlink()
    refused("expected one file of weights, found none")
    torch.save({"state_dict": {"a": print}}, folder / "policy.pt")  # names a function
    refused("policy.pt: expected weights and plain values, found .*print in it, which could run")
    torch.save({"state_dict": whole}, folder / "policy.pt")
    flip(folder / "policy.pt")
    refused("policy.pt: expected record policy/data/.* as it was written, found it damaged")
    config.write_text(json.dumps(said | {"model": "uform"}))
    refused("code that transformers does not have")
    config.write_text(json.dumps(said | {"model_config": "absent.json"}))
    refused("expected the backbone's config absent.json")
    config.write_text(
        json.dumps(said | {"act_head": said["act_head"] | {"type": "DiscreteDecoder"}})
    )
    refused("backbone: expected a tokenizer")
    config.write_text(json.dumps(said | {"act_head": {"latent": 1}}))
    refused("expected act_head.type to name a decoder")


@pytest.mark.runs("tatara import robovlms CONFIG.json CHECKPOINT")
@torch.no_grad()
def test_a_checkpoint_becomes_a_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`tatara import robovlms CONFIG.json CHECKPOINT`: safetensors that answer the same."""
    folder = _checkpoint(tmp_path / "run", "module")
    config = json.loads((folder / "config.json").read_text())
    config |= {"norm_action": True, "norm_min": -0.65, "norm_max": 0.65, "use_hand_rgb": True}
    (folder / "config.json").write_text(json.dumps(config))
    base = tmp_path / "base"
    shutil.copytree(TINY, base)
    (base / "config.json").write_text(json.dumps(BACKBONE))
    command = [
        "import", "robovlms", str(folder / "config.json"), str(folder / "policy.pt"),
        "--base", str(base), "--output", str(tmp_path / "mine.yaml"),
    ]  # fmt: skip
    assert main(command) == 0
    assert f"written: {tmp_path / 'mine'}/" in capsys.readouterr().out
    assert (tmp_path / "mine/model.safetensors").is_file()
    io, policy = _stored("window_io"), load_pretrained(tmp_path / "mine")
    out = policy(_seen(io["rgb"], io["hand_rgb"]), io["text"], io["text_mask"])
    _close(out.arm, io["both_cameras.arm"], 1e-6)
    acting = Policy.from_pretrained(tmp_path / "mine", device="cpu", report=lambda text: None)
    assert acting.cameras == ("static", "gripper") and acting.unnorm_keys == ("calvin",)
    arm, opens = np.array([[-1.0, 0.0, 1.0, 0.5, 0.0, 0.0]]), np.array([True])
    sent = acting.scale(None).actions(arm, opens)  # type: ignore[attr-defined]
    assert np.allclose(sent, [[-0.65, 0.0, 0.65, 0.325, 0.0, 0.0, 1.0]])
    assert main(command) == 2 and "a name that is free" in capsys.readouterr().err
    of_mixture = {"type": "OpenVLADataset", "data_root_dir": "oxe", "data_mix": "bridge"}
    (folder / "oxe.json").write_text(json.dumps(config | {"train_dataset": of_mixture}))
    command[2], command[-1] = str(folder / "oxe.json"), str(tmp_path / "other.yaml")
    assert main(command) == 2 and "found the mixture bridge, whose" in capsys.readouterr().err


@torch.no_grad()
def test_a_checkpoint_of_discrete_actions_becomes_a_policy(tmp_path: Path) -> None:
    """`DiscreteDecoder` has no weights of its own; the ids are those of the base's tokenizer, and
    the frames of a window are one sequence whatever `history_type` says."""
    fields = json.loads((TINY / "config.json").read_text())
    head = HeadSize(64, hidden=48, chunk=1, window=2)
    spec = PolicySpec(
        fields, "discrete", head, history="interleaved", usable=usable_tokens(tokenizer(TINY)),
        bins=32, bounds=(-0.65, 0.65),
    )  # fmt: skip
    own = random_policy(spec, 3).eval()
    tied = own.all_tied_weights_keys
    state = {f"model.{key}": v for key, v in own.state_dict().items() if key not in tied}
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"state_dict": state}, folder / "policy.pt")
    config = {
        "model": "kosmos", "model_config": str(TINY / "config.json"), "window_size": 2,
        "fwd_pred_next_n": 1, "norm_action": True, "norm_min": -0.65, "norm_max": 0.65,
        "act_head": {"type": "DiscreteDecoder", "hidden_size": 48, "action_dim": 7, "n_bin": 32,
                     "min_action": -1, "max_action": 1, "action_space": "discrete"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    assert load_pretrained(folder).spec == spec
    words = [str(folder / "config.json"), str(folder / "policy.pt"), "--base", str(TINY)]
    assert main(["import", "robovlms", *words, "--output", str(tmp_path / "mine.yaml")]) == 0
    own_data = [f"model.name={tmp_path / 'mine'}", "data.source=calvin"]
    profile, _ = resolve(tmp_path / "mine.yaml", {}, own_data)
    assert (profile.action_head.history, profile.action_head.bins) == ("interleaved", 32)
    acting = Policy.from_pretrained(tmp_path / "mine", device="cpu", report=lambda text: None)
    assert isinstance(acting, HeadPolicy) and acting.model.spec == spec
    stored = acting.model.state_dict()
    assert all(torch.equal(stored[key], value) for key, value in own.state_dict().items())
    memory = acting.new_memory()
    seen = Observation({"static": np.zeros((200, 200, 3), np.uint8)}, "open the drawer")
    for _ in range(3):
        action = acting.act([seen], memories=[memory])[0, 0]
        assert action.shape == (7,) and np.abs(action[:6]).max() <= 0.65


@pytest.mark.parametrize("kind", ["fc", "gpt"])
@torch.no_grad()
def test_a_checkpoint_with_another_head(kind: str, tmp_path: Path) -> None:
    policy = load_pretrained(_checkpoint(tmp_path / "run", "state_dict", kind))
    states = _stored("heads_io")["lstm_none.input"]
    for found, expected in zip(policy.act_head(states), _head(kind)(states), strict=True):
        _close(found, expected, 1e-6)
