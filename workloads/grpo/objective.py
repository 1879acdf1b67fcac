"""Settings of GRPO's objective, under TRL's own names (1.16), in groups.

`objective` names a choice of several of them; each that a profile sets itself wins over it. None
leaves a value to the objective, or else to TRL.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, model_validator

from workloads.config.sections import Number, Section, Text, Whole

LossType = Literal["grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"]
# Objectives by name. `r1v`: R1-V's objective, KL to a frozen reference and a mean over
# tokens, then over sequences. `trl`: what TRL does unless told otherwise. `dapo`: clip higher, a
# mean over all tokens, cut completions left out (arXiv 2503.14476). `dr_grpo`: no division by
# length or deviation (2503.20783). `gspo`: one ratio a sequence, clipped closely (2507.18071).
OBJECTIVES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "r1v": {"beta": 0.04, "epsilon": 0.2, "loss_type": "grpo", "scale_rewards": "group"},
        "trl": {"beta": 0.0, "epsilon": 0.2, "loss_type": "dapo", "scale_rewards": "group"},
        "dapo": {
            "beta": 0.0,
            "epsilon": 0.2,
            "epsilon_high": 0.28,
            "loss_type": "dapo",
            "scale_rewards": "group",
            "mask_truncated_completions": True,
        },
        "dr_grpo": {
            "beta": 0.0,
            "epsilon": 0.2,
            "loss_type": "dr_grpo",
            "scale_rewards": "none",
        },
        "gspo": {
            "beta": 0.0,
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
            "loss_type": "grpo",
            "scale_rewards": "group",
            "importance_sampling_level": "sequence",
        },
    }
)
# Ours, not TRL's: how long a prompt may be, how images are scaled, and the groups themselves.
_OWN = frozenset(("objective", "max_prompt_length", "max_pixels", "min_pixels"))


# Names in generation_kwargs, of transformers and vLLM, that settings of ours decide.
_DECIDED_BY: Mapping[str, str] = MappingProxyType(
    {
        "temperature": "grpo.temperature",
        **{name: f"grpo.sampling.{name}" for name in ("top_p", "top_k", "min_p")},
        "repetition_penalty": "grpo.sampling.repetition_penalty",
        "cache_implementation": "grpo.sampling.cache_implementation",
        **dict.fromkeys(
            ("max_new_tokens", "max_length", "max_tokens"), "grpo.max_completion_length"
        ),
        **dict.fromkeys(("num_return_sequences", "n", "best_of"), "grpo.num_generations"),
    }
)


class Sampling(Section):
    """Sampling of completions, besides grpo.temperature."""

    top_p: Number = Field(1.0, gt=0, le=1, description="Smallest set of tokens by probability.")
    top_k: Whole = Field(0, ge=0, description="Most probable tokens only; 0: all.")
    min_p: Number | None = Field(
        None, ge=0, le=1, description="Least probability, as a share of the highest."
    )
    repetition_penalty: Number = Field(
        1.0, gt=0, description="Over 1: tokens that were generated before become less probable."
    )
    generation_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the engine's sampling."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="TRL's place for switches of the chat template; they join and replace those "
        "of model.chat_template_kwargs.",
    )
    cache_implementation: Text | None = Field(
        None, description="Kind of cache of transformers' generation, e.g. static."
    )

    @model_validator(mode="after")
    def _decided_once(self) -> "Sampling":
        for name in self.generation_kwargs:
            if name in _DECIDED_BY:
                raise ValueError(f"generation_kwargs.{name}: set {_DECIDED_BY[name]} instead")
        return self


class Entropy(Section):
    """An entropy bonus, and learning from the tokens of highest entropy only."""

    entropy_coef: Number = Field(0.0, ge=0, description="Weight of the bonus.")
    use_adaptive_entropy: bool = Field(
        False, description="Move the weight by steps towards entropy_target."
    )
    entropy_coef_min: Number = Field(0.0, ge=0, description="Least adaptive weight.")
    entropy_coef_max: Number = Field(1.0, ge=0, description="Greatest adaptive weight.")
    entropy_coef_delta: Number = Field(0.005, gt=0, description="A step of the adaptive weight.")
    entropy_target: Number = Field(
        0.2, ge=0, description="Entropy a token in nats below which the adaptive bonus counts."
    )
    top_entropy_quantile: Number = Field(
        1.0, ge=0, le=1, description="Learn from this share of tokens, of highest entropy."
    )

    @model_validator(mode="after")
    def _bounded(self) -> "Entropy":
        low, high = self.entropy_coef_min, self.entropy_coef_max
        if low > high:
            raise ValueError(f"entropy_coef_min is {low:g}, more than entropy_coef_max, {high:g}")
        return self


class Reference(Section):
    """The reference of the KL term: frozen, or following the model."""

    sync_ref_model: bool = Field(False, description="Move the reference towards the model.")
    ref_model_mixup_alpha: Number = Field(
        0.6, gt=0, le=1, description="Share of the model in the moved reference."
    )
    ref_model_sync_steps: Whole = Field(512, ge=1, description="Steps between two moves.")
    use_bias_correction_kl: bool = Field(
        False, description="Weigh the KL estimate by the importance ratio."
    )


class Mismatch(Section):
    """vLLM's probabilities against the trainer's own: corrected by importance sampling."""

    vllm_importance_sampling_correction: bool = Field(
        True, description="Correct completions of vLLM, whose probabilities differ a little."
    )
    vllm_importance_sampling_mode: Literal[
        "sequence_mask", "sequence_truncate", "token_mask", "token_truncate"
    ] = Field(
        "sequence_mask",
        description="Treatment and level of ratios out of bounds.",
    )
    vllm_importance_sampling_clip_max: Number | None = Field(
        3.0, gt=0, description="Greatest ratio; none: no bound."
    )
    vllm_importance_sampling_clip_min: Number | None = Field(
        None, ge=0, description="Least ratio; none: no bound."
    )
    off_policy_mask_threshold: Number | None = Field(
        None, gt=0, description="Leave out completions of negative advantage that drifted further."
    )

    @model_validator(mode="after")
    def _bounded(self) -> "Mismatch":
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"clip_min is {low}, which is not below clip_max, {high}")
        if low is None and high is None and self.vllm_importance_sampling_mode.endswith("truncate"):
            raise ValueError("a truncate mode needs clip_min or clip_max")
        return self


class SoftClipping(Section):
    """Temperatures and exponents of loss_type sapo and vespo."""

    sapo_temperature_neg: Number = Field(1.05, gt=0, description="sapo: for negative advantages.")
    sapo_temperature_pos: Number = Field(1.0, gt=0, description="sapo: for positive advantages.")
    vespo_k_pos: Number = Field(2.0, gt=0, description="vespo: exponent, positive advantages.")
    vespo_lambda_pos: Number = Field(3.0, gt=0, description="vespo: decay, positive advantages.")
    vespo_k_neg: Number = Field(3.0, gt=0, description="vespo: exponent, negative advantages.")
    vespo_lambda_neg: Number = Field(2.0, gt=0, description="vespo: decay, negative advantages.")


class Grpo(Section):
    objective: Literal["r1v", "trl", "dapo", "dr_grpo", "gspo"] = Field(
        "trl", description="Named choice of the settings below that say none."
    )
    beta: Number | None = Field(
        None, ge=0, description="Weight of the KL term; none: as `objective`. 0: no reference."
    )
    epsilon: Number | None = Field(
        None, gt=0, lt=1, description="Clipping of the ratio; none: as `objective`."
    )
    epsilon_high: Number | None = Field(
        None, gt=0, description="Upper clipping (clip higher); none: as `objective`, or epsilon."
    )
    delta: Number | None = Field(
        None, gt=1, description="Second upper bound for negative advantages (two-sided clipping)."
    )
    loss_type: LossType | None = Field(
        None, description="How token losses are averaged or clipped; none: as `objective`."
    )
    importance_sampling_level: Literal["token", "sequence"] | None = Field(
        None, description="One ratio a token, or a sequence (GSPO); none: as `objective`."
    )
    scale_rewards: Literal["group", "batch", "none"] | None = Field(
        None, description="What rewards are divided by; none: as `objective`."
    )
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        "sum_then_normalize", description="Several rewards: normalised as a sum, or each (GDPO)."
    )
    mask_truncated_completions: bool | None = Field(
        None, description="Leave cut completions out of the loss; none: as `objective`."
    )
    num_generations: Whole = Field(8, ge=2, description="Completions of each prompt: a group.")
    num_iterations: Whole = Field(1, ge=1, description="Passes over the completions of a rollout.")
    steps_per_generation: Whole | None = Field(
        None,
        ge=1,
        description="Micro-batches generated at once; none: those of one optimizer step.",
    )
    temperature: Number = Field(1.0, gt=0, description="Temperature of sampling.")
    max_prompt_length: Whole = Field(
        2048, ge=8, description="Longest prompt in tokens, images included."
    )
    max_completion_length: Whole = Field(512, ge=1, description="Longest completion in tokens.")
    max_pixels: Whole | None = Field(
        None, ge=1, description="Larger images are scaled down to it; none: as the model's own."
    )
    min_pixels: Whole | None = Field(
        None, ge=1, description="Smaller images are scaled up to it; none: as the model's own."
    )
    router_aux_loss_coef: Number | None = Field(
        None, ge=0, description="Weight of the balance loss of mixtures of experts."
    )
    disable_dropout: bool = Field(False, description="No dropout while learning.")
    cast_lm_head_to_fp32: bool = Field(False, description="Compute the last layer in fp32.")
    sampling: Sampling = Sampling()
    entropy: Entropy = Entropy()
    reference: Reference = Reference()
    mismatch: Mismatch = Mismatch()
    soft_clipping: SoftClipping = SoftClipping()

    @model_validator(mode="after")
    def _together(self) -> "Grpo":
        settled = self.settled()
        level = settled.get("importance_sampling_level")
        if settled["loss_type"] == "luspo" and level != "sequence":
            raise ValueError("loss_type luspo needs importance_sampling_level=sequence")
        of_tokens = self.mismatch.vllm_importance_sampling_mode.startswith("token")
        if settled["loss_type"] == "vespo" and not of_tokens:
            raise ValueError(
                "loss_type vespo needs grpo.mismatch.vllm_importance_sampling_mode "
                "token_truncate or token_mask"
            )
        if self.reference.sync_ref_model and not self.has_reference:
            raise ValueError("reference.sync_ref_model needs beta over 0: there is no reference")
        return self

    def settled(self) -> dict[str, Any]:
        """The objective's values, overridden by the profile's own."""
        own = {name: value for name, value in self._own() if value is not None}
        return {**OBJECTIVES[self.objective], **own}

    def _own(self) -> Iterator[tuple[str, Any]]:
        """The profile's own values of settings that objectives set."""
        names = dict.fromkeys(name for named in OBJECTIVES.values() for name in named)
        dumped = self.model_dump()
        return ((name, dumped[name]) for name in names)

    @property
    def has_reference(self) -> bool:
        """Whether a reference model is needed."""
        return float(self.settled()["beta"]) > 0

    def arguments(self) -> dict[str, Any]:
        """Arguments that TRL's GRPOConfig takes under the same name."""
        groups = {name: value for name, value in self.model_dump().items() if name not in _OWN}
        flat: dict[str, Any] = {}
        for name, value in groups.items():
            flat |= value if isinstance(value, dict) else {name: value}
        if self.router_aux_loss_coef is None:  # TRL then takes it from the model
            del flat["router_aux_loss_coef"]
        usual = {"importance_sampling_level": "token", "mask_truncated_completions": False}
        return flat | usual | self.settled()
