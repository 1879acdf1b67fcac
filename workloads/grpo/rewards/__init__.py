"""Rewards: R1-V's unchanged, tolerant versions, and the user's own functions."""

from workloads.grpo.rewards.functions import (
    accuracy,
    accuracy_extracted,
    format,
    format_tolerant,
)

__all__ = ["accuracy", "accuracy_extracted", "format", "format_tolerant"]
