"""Rules for each field of a RoboVLMs config: mapped, kept or refused.

A rule maps a field to a setting, keeps it for reference with the reason, or refuses a value that
would train something else. No field is without one: an unknown one is refused.
"""

import re
from collections.abc import Mapping
from typing import Any

from workloads.vla.mixtures import mixtures
from workloads.vla.robovlms.rules import (
    Config,
    Convert,
    Keeps,
    KeptField,
    Maps,
    RefusedField,
    Refuses,
    Rule,
    choice,
    number,
    section,
    whole,
)

_REPOSITORY = re.compile(
    r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)?([\w-][\w.-]*/[\w.-]+?)"
    r"(?:\.git|/tree/main)?/?"
)


def _repository(value: Any, _: Config) -> str:
    found = _REPOSITORY.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise RefusedField("expected https://huggingface.co/OWNER/NAME")
    return found[1]


def _local_model(value: Any, config: Config) -> Any:
    if config.get("model_url"):
        raise KeptField("a local copy; model_url names the model")
    return value


def _loaded(value: Any, config: Config) -> Any:
    """A folder of `vlm` or `tokenizer`: what is loaded there, whatever the model is called."""
    named = config.get("model_url") or config.get("model_path")
    if not isinstance(value, str) or not isinstance(named, str):
        raise KeptField("model.name says it")
    own, other = (name.rstrip("/").removesuffix(".git").split("/")[-1] for name in (value, named))
    if own.lower() != other.lower():
        raise RefusedField(
            f"there this folder is loaded, and not {named}, which became model.name; set "
            "model.name to the model that it holds"
        )
    raise KeptField("a local copy of model.name")


def _batch(value: Any, config: Config) -> int:
    if isinstance(value, list):
        raise RefusedField("several datasets: RoboVLMs trains on the first batch only")
    return whole(value, config)


def _accumulated(value: Any, config: Config) -> int:
    batch = config.get("batch_size")
    if value == 1:
        raise KeptField("every micro-batch is a step: train.global_batch_size is left out")
    if not isinstance(batch, int):
        raise RefusedField("expected a batch_size that is one number")
    return whole(value, config) * batch


def _warmup(value: Any, config: Config) -> float:
    epochs = section(config, "trainer").get("max_epochs")
    if not value:
        raise KeptField("no warm-up by epochs")
    if config.get("warmup_steps"):
        raise RefusedField("expected warmup_epochs or warmup_steps; their sum has no setting")
    known = isinstance(epochs, int | float) and number(epochs, config)
    if not 0 < number(value, config) < known:
        raise RefusedField("expected fewer epochs than trainer.max_epochs")
    return round(value / epochs, 6)  # a share of all steps


def _warmup_steps(value: Any, config: Config) -> int:
    if not value:
        raise KeptField("no warm-up by steps")
    if config.get("warmup_epochs"):
        raise RefusedField("expected warmup_epochs or warmup_steps; their sum has no setting")
    return whole(value, config)


def _clipping(value: Any, config: Config) -> float:
    if not value:
        raise KeptField("nothing was clipped; optim.max_grad_norm is 1.0 unless set")
    return number(value, config)


def _trainer_clipping(value: Any, config: Config) -> Any:
    used = config.get("gradient_clip_val") or 0
    raise KeptField(
        f"overwritten by the gradient_clip_val outside of trainer, here {used}: gradients were "
        f"{'clipped to that' if used else 'never clipped'} there"
    )


def _setup_precision(value: Any, config: Config) -> Any:
    used = section(config, "trainer").get("precision")
    raise KeptField(f"overwritten by trainer.precision, here {used!r}")


def _overwritten_by(field: str) -> Convert:
    def convert(value: Any, config: Config) -> Any:
        raise KeptField(f"overwritten by {field} outside of act_head, here {config.get(field)!r}")

    return convert


def _max_steps(value: Any, config: Config) -> int:
    if value == -1:
        raise KeptField("no bound: epochs count")
    return whole(value, config)


def _of_mixture(config: Config) -> bool:
    """Whether the config trains on a mixture of Open X-Embodiment, not on CALVIN."""
    return section(config, "train_dataset").get("type") == "OpenVLADataset"


def _cameras(value: Any, config: Config) -> list[str]:
    if not isinstance(value, bool | None):
        raise RefusedField("expected true or false")
    if not _of_mixture(config):
        return ["static", "gripper"] if value else ["static"]
    if value:
        raise KeptField(
            "without effect there: mixtures have only their primary camera, as without data.cameras"
        )
    return ["primary"]


def _bound(side: str) -> Maps:
    def convert(value: Any, config: Config) -> float:
        if not config.get("norm_action"):
            raise KeptField("norm_action is off")
        if _of_mixture(config):
            raise KeptField(
                "each dataset's q01 to q99 count; there, the result is also clipped to this"
            )
        return number(value, config)

    return Maps(f"data.normalise.{side}", convert)


def _shift(camera: str) -> Maps:
    def convert(value: Any, config: Config) -> int:
        if value == -1:
            raise KeptField("no shift")
        if _of_mixture(config):
            raise RefusedField("images of mixtures are not shifted; set data.shift={primary: …}")
        return whole(value, config)

    return Maps(f"data.shift.{camera}", convert)


def _calvin_folder(value: Any, config: Config) -> Any:
    if _of_mixture(config):
        raise KeptField("data_root_dir says where a mixture lies")
    return value


def _image_aug(value: Any, config: Config) -> bool:
    if not _of_mixture(config):
        raise KeptField("of OpenVLADataset")
    if not isinstance(value, bool):
        raise RefusedField("expected true or false")
    return value


def _mixture_folder(value: Any, config: Config) -> Any:
    if not _of_mixture(config):
        raise KeptField("of OpenVLADataset")
    return value


def _mixture(value: Any, config: Config) -> Any:
    if not _of_mixture(config):
        raise KeptField("of OpenVLADataset")
    if not isinstance(value, str) or value not in mixtures():
        raise RefusedField(
            f"no known mixture; known: {', '.join(mixtures())}; name each dataset as "
            "data.source and data.mixed_with"
        )
    return value


def _of_discrete(setting: str) -> Maps:
    def convert(value: Any, config: Config) -> Any:
        if section(config, "act_head").get("action_space") != "discrete":
            raise KeptField("of discrete actions only")
        return number(value, config)

    return Maps(setting, convert)


def _action_space(value: Any, config: Config) -> str:
    if value == "discrete":
        raise KeptField("act_head.type says it")
    if value != "down_sample":
        return str(choice({"continuous": "action_token"}, "known are continuous, down_sample, "
                           "discrete")(value, config))  # fmt: skip
    source = section(config, "act_head").get("token_source", "all")
    return str(choice({"all": "all", "text": "text", "vision": "vision"})(source, config))


def _history(value: Any, config: Config) -> str:
    if value == "video":
        raise RefusedField(
            "a window's frames with one text and one action token, whose one prediction is "
            "compared with every step; set action_head.history=interleaved, where each frame "
            "sees those before it"
        )
    found = str(choice({"post": "head", "pre": "interleaved"}, "known are post and pre")(
        value, config))  # fmt: skip
    if section(config, "act_head").get("type") != "DiscreteDecoder":
        return found
    # There a window's frames are one sequence for discrete actions, whatever it says.
    return "none" if config.get("window_size") == 1 else "interleaved"


def _token_source(value: Any, config: Config) -> Any:
    if section(config, "act_head").get("action_space") != "down_sample":
        raise KeptField("of action_space down_sample only")
    raise KeptField("action_head.reads, from act_head.action_space")


def _model(value: Any, config: Config) -> Any:
    choice({"kosmos": "", "paligemma": ""}, _OTHER_CODE)(value, config)
    raise KeptField("the config.json of model.name says it")


_NOT_READ = Keeps("nothing of RoboVLMs reads it")
_NO_EFFECT = Keeps("without effect there")
_BACKBONE = Keeps("the backbone's own files say it")
_OTHER_CODE = "its backbone needs code that transformers does not have, which is never run"
_FUTURE = Refuses("images and captions are not predicted, only actions")
# There, what is left out or null is not trained.
_ALL_TRAINED = Refuses("parts of the model cannot be left out of training", (True,))
_MORE_OF_LIGHTNING = Keeps("of Lightning's own output and checks")
_QUANTISED = Refuses("quantised bases are not trained as a whole", (-1, None))
_FOLDERS = Keeps("a run's files are below outputs/")
_VALIDATION = Keeps("episodes are held out of the training data: data.eval_share")
_SIDE = Keeps("of a model or loss that is not used here")

RULES: Mapping[str, Rule] = {
    "robovlm_name": Keeps("the class there; `model` says the backbone"),
    "parent": Keeps("merged"),
    "task_name": Keeps("a name; the profile's is its file's"),
    "model": Maps("", _model),
    "model_url": Maps("model.name", _repository),
    "model_path": Maps("model.name", _local_model),
    "model_config": _BACKBONE,
    "model_load_path": Refuses(
        "weights to start from are not taken over: import them as CHECKPOINT beside their own "
        "config, and name the policy as model.name",
        (None,),
    ),
    "model_load_source": _NO_EFFECT,
    "resume": Refuses("a training of RoboVLMs cannot be resumed here", (None,)),
    "seq_len": _NO_EFFECT,
    "image_size": _BACKBONE,
    "image_mean": _NOT_READ,
    "image_std": _NOT_READ,
    "window_size": Maps("data.window", whole),
    "fwd_pred_next_n": Maps("action_head.chunk", whole),
    "arm_gripper_loss_ratio": Maps("action_head.gripper_weight", number),
    "cap_loss_ratio": _SIDE,
    "fwd_loss_ratio": _SIDE,
    "vl_cotrain_ratio": _SIDE,
    "kl_div_ratio": _SIDE,
    "clip_norm_ratio": _SIDE,
    "use_clip_norm": Refuses("its loss is not offered"),
    "seed": Maps("train.seed", lambda value, _: value, "there: plus the rank"),
    "batch_size": Maps("train.per_device_batch_size", _batch),
    "num_workers": Maps("train.workers"),
    "data_scale": _NOT_READ,
    "train_weights": Refuses("weights of several datasets", (None,)),
    "optimizer": Keeps("AdamW (0.9, 0.999, 1e-8) whatever it says"),
    "learning_rate": Maps("optim.learning_rate", number),
    "min_lr_scale": Keeps("without effect but under half-cosine"),
    "scheduler": Maps(
        "optim.schedule",
        choice(
            {"constant": "constant", "cosine": "cosine"},
            "known are constant and cosine; half-cosine ends at min_lr_scale, which is not offered",
        ),
    ),
    "weight_decay": Maps("optim.weight_decay", number),
    "warmup_epochs": Maps("optim.warmup_steps", _warmup, "as a share of all steps"),
    "warmup_steps": Maps("optim.warmup_steps", _warmup_steps),
    "warmup_ratio": _NOT_READ,
    "gradient_clip_val": Maps("optim.max_grad_norm", _clipping),
    "use_hand_rgb": Maps("data.cameras", _cameras),
    "use_state": Refuses("without effect there: the state is never given to the model"),
    "use_multi_modal_emb": _NO_EFFECT,
    "finetune": _NO_EFFECT,
    "use_time_causal_attn": _SIDE,
    "use_mim_obs_loss": _SIDE,
    "use_pixel_loss": _SIDE,
    "use_obs_queries": _SIDE,
    "use_vision_resampler": Refuses("a resampler of its own is not offered"),
    "vision_masked_ratio": _SIDE,
    "use_tube_mask": _SIDE,
    "output_root": _FOLDERS,
    "log_root": _FOLDERS,
    "cache_root": _FOLDERS,
    "exp_name": _FOLDERS,
    "raw_config_path": _FOLDERS,
    "gpus": Keeps("parallel.ranks_per_node, found by itself"),
    "num_nodes": Maps("parallel.nodes", whole),
    "norm_action": Refuses("actions are always normalised", (True,)),
    "norm_min": _bound("low"),
    "norm_max": _bound("high"),
    "use_mu_law": Refuses("the mu-law is not offered"),
    "mu_val": Keeps("of use_mu_law"),
    "regular_action": Refuses("actions are normalised by bounds, not by mean and deviation"),
    "x_mean": Keeps("of regular_action"),
    "x_std": Keeps("of regular_action"),
    "tcp_rel": Refuses("it cannot run there either: a function is not imported"),
    "discrete_action_history": Refuses("past actions are not given to the model"),
    "ensemble_action": _NO_EFFECT,
    "act_encoder": Refuses("an encoder of past actions is not offered", (None,)),
    "fwd_head": Refuses("images are not predicted, only actions", (None,)),
    "train_setup.precision": Maps("", _setup_precision),
    "train_setup.predict_action": Refuses("a policy predicts actions", (True, None)),
    "train_setup.predict_forward": _FUTURE,
    "train_setup.predict_forward_hand": _FUTURE,
    "train_setup.predict_caption": _FUTURE,
    "train_setup.train_vision": _ALL_TRAINED,
    "train_setup.train_text_embedding": _ALL_TRAINED,
    "train_setup.train_resampler": Refuses(_ALL_TRAINED.why, (True, None)),
    "train_setup.train_full_decoder": _NO_EFFECT,
    "train_setup.train_decoder_layers": Refuses(_ALL_TRAINED.why, (-1,)),
    "train_setup.freeze_backbone": Refuses(_ALL_TRAINED.why),
    "train_setup.freeze_resampler": _SIDE,
    "train_setup.freeze_mm_mlp_adapter": _NOT_READ,
    "train_setup.tune_mm_mlp_adapter": _NOT_READ,
    "train_setup.mm_use_im_start_end": _NOT_READ,
    "train_setup.mm_use_im_patch_token": _NOT_READ,
    "train_setup.mm_projector_lr": _NOT_READ,
    "train_setup.bits": _QUANTISED,
    "train_setup.gradient_checkpointing": Maps(
        "train.gradient_checkpointing", note="without effect there"
    ),
    "train_setup.lora_enable": Refuses(
        "LoRA cannot run there; set adapter.method, adapter.r and adapter.targets yourself"
    ),
    "train_setup.lora_r": Keeps("of lora_enable"),
    "train_setup.lora_alpha": Keeps("of lora_enable"),
    "train_setup.lora_dropout": Keeps("of lora_enable"),
    "train_setup.lora_bias": Keeps("of lora_enable"),
    "act_head.type": Maps(
        "action_head.kind",
        choice(
            {"LSTMDecoder": "lstm", "FCDecoder": "fc", "GPTDecoder": "gpt",
             "DiscreteDecoder": "discrete"}
        ),
    ),
    "act_head.hidden_size": Maps("action_head.hidden", whole),
    "act_head.num_layers": Maps("action_head.layers", whole),
    "act_head.policy_rnn_dropout_p": Maps("action_head.dropout", number),
    "act_head.action_dim": Maps("action_head.size", whole),
    "act_head.latent": Maps("action_head.latent", whole),
    "act_head.down_sample": Maps(
        "action_head.pool", choice({"none": False, "pooling": True})
    ),
    "act_head.action_space": Maps("action_head.reads", _action_space),
    "act_head.token_source": Maps("", _token_source),
    "act_head.history_type": Maps("action_head.history", _history),
    "act_head.with_history": _NOT_READ,
    "act_head.window_size": Maps("", _overwritten_by("window_size")),
    "act_head.fwd_pred_next_n": Maps("", _overwritten_by("fwd_pred_next_n")),
    "act_head.n_bin": _of_discrete("action_head.bins"),
    "act_head.min_action": _of_discrete("action_head.low"),
    "act_head.max_action": _of_discrete("action_head.high"),
    "trainer.accelerator": Keeps("found by itself"),
    "trainer.strategy": Maps(
        "parallel.strategy",
        choice({
            "deepspeed": "zero2", "deepspeed_stage_2": "zero2", "deepspeed_stage_3": "zero3",
            "ddp": "ddp", "ddp_find_unused_parameters_true": "ddp", "auto": "auto",
        }),
    ),
    "trainer.precision": Maps(
        "train.precision",
        choice({
            "16": "fp16", "16-mixed": "fp16", 16: "fp16", "bf16": "bf16", "bf16-mixed": "bf16",
            "32": "fp32", "32-true": "fp32", 32: "fp32",
        }),
    ),
    "trainer.logger": Keeps("TensorBoard is written; `tatara report RUN --csv` makes a CSV file"),
    "trainer.gradient_clip_val": Maps("", _trainer_clipping),
    "trainer.use_distributed_sampler": Keeps("ranks always take different samples"),
    "trainer.log_every_n_steps": Maps("train.log_every", whole),
    "trainer.max_epochs": Maps("train.epochs", number),
    "trainer.max_steps": Maps("train.max_steps", _max_steps),
    "trainer.val_check_interval": Keeps("evaluation.every_steps says when"),
    "trainer.check_val_every_n_epoch": Keeps("evaluation.every_steps says when"),
    "trainer.limit_train_batches": Refuses(
        "epochs are not cut short; set train.max_steps", (None, 1.0)
    ),
    "trainer.limit_val_batches": Keeps("evaluation.samples says how many"),
    "trainer.num_sanity_val_steps": _MORE_OF_LIGHTNING,
    "trainer.enable_checkpointing": _MORE_OF_LIGHTNING,
    "trainer.enable_progress_bar": _MORE_OF_LIGHTNING,
    "trainer.enable_model_summary": _MORE_OF_LIGHTNING,
    "trainer.benchmark": _MORE_OF_LIGHTNING,
    "trainer.accumulate_grad_batches": Maps(
        "train.global_batch_size", _accumulated, "for one rank: multiply it by yours"
    ),
    "train_dataset.type": Refuses(
        "only CALVIN and Open X-Embodiment are read as RoboVLMs reads them",
        ("DiskCalvinDataset", "OpenVLADataset"),
    ),
    "train_dataset.data_dir": Maps("data.source", _calvin_folder),
    "train_dataset.lang_folder": Refuses("another folder of annotations", ("lang_annotations",)),
    "train_dataset.skip_frames": Maps("data.stride", whole),
    "train_dataset.rgb_pad": _shift("static"),
    "train_dataset.gripper_pad": _shift("gripper"),
    "train_dataset.traj_cons": Keeps("each frame is shifted by itself"),
    "train_dataset.shift_first": _NOT_READ,
    "train_dataset.model_name": Keeps("`model` says it"),
    "train_dataset.tokenizer_type": Keeps("`model` says it"),
    "train_dataset.text_aug": Refuses("texts are not varied"),
    "train_dataset.save_format": Refuses("only frames as NPZ files are read", ("npz",)),
    "train_dataset.partial_data": Refuses("all annotated spans are trained on"),
    "train_dataset.few_shot": Refuses("all annotated spans are trained on"),
    "train_dataset.exclude_tasks": Refuses("all annotated spans are trained on", ([], None)),
    "train_dataset.data_root_dir": Maps("data.source", _mixture_folder),
    "train_dataset.data_mix": Maps("data.mixture", _mixture),
    "train_dataset.image_aug": Maps(
        "data.augmentation.enabled", _image_aug, "by OpenVLA's settings, which are the defaults"
    ),
    "train_dataset.mode": _NO_EFFECT,
    "train_dataset.train": _NO_EFFECT,
    "train_dataset.window_sample": _NO_EFFECT,
    "train_dataset.organize_type": Refuses("only windows side by side", ("interleave", None)),
    "train_dataset.shuffle_buffer_size": Keeps("all windows are shuffled"),
    "tokenizer.": Keeps("the model's own tokenizer"),
    "tokenizer.pretrained_model_name_or_path": Maps("", _loaded),
    "tokenizer.additional_special_tokens": Refuses(
        "no tokens are added to the model's own", ([], None)
    ),
    "vlm.pretrained_model_name_or_path": Maps("", _loaded),
    "vlm.": Keeps("`model` and `model_url` say it"),
    "vision_resampler.": Keeps("of use_vision_resampler"),
    "vision_encoder.": Keeps("the backbone's own files say it"),
    "val_dataset.": _VALIDATION,
    "llava": _SIDE,
    "llava_config": _SIDE,
    "qwen": _SIDE,
}  # fmt: skip

# Fields that RoboVLMs cannot run without. A profile can: its own default counts.
NEEDED = (
    "window_size", "fwd_pred_next_n", "arm_gripper_loss_ratio", "seed", "batch_size",
    "learning_rate", "weight_decay", "use_hand_rgb", "act_head.type", "act_head.latent",
    "act_head.down_sample", "trainer.precision", "trainer.max_epochs",
)  # fmt: skip

# RoboVLMs' defaults that differ from those of a profile.
DEFAULTS: Mapping[str, Any] = {
    "scheduler": "constant",
    "gradient_clip_val": 0,
    "norm_action": False,
    "train_setup.train_vision": False,
    "train_setup.train_text_embedding": False,
    "act_head.action_space": "continuous",
    "act_head.history_type": "post",
    "act_head.num_layers": 4,
    "norm_min": -1,
    "norm_max": 1,
}
