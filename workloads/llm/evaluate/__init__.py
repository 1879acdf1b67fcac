"""Questions to a language model, scored as lm-evaluation-harness scores them."""

from workloads.llm.evaluate.gsm8k import score_gsm8k

__all__ = ["score_gsm8k"]
