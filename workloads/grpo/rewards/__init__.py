"""Rewards: R1-V's to the letter, tolerant ones, and functions of one's own."""

from workloads.grpo.rewards.functions import (
    accuracy,
    accuracy_extracted,
    format,
    format_tolerant,
)

__all__ = ["accuracy", "accuracy_extracted", "format", "format_tolerant"]
