"""Packed rows must give the logits, losses and gradients of the same rows by themselves."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from workloads.llm.data.collate import Collate

pytestmark = pytest.mark.unit

PAD = 0
# Rows of different total lengths; one sample of a single token, one row of a single sample.
PACKED = ((5, 9, 3), (7, 1), (12,), (2, 2, 2, 2, 2))


def llama(attention: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.06,  # wide enough for attention to matter
        pad_token_id=PAD,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)


def packed_rows() -> list[dict]:
    draw = torch.Generator().manual_seed(1)
    rows = []
    for number, samples in enumerate(PACKED):
        ids = torch.randint(1, 61, (sum(samples),), generator=draw).tolist()
        learnt = torch.rand(len(ids), generator=draw) < 0.7
        labels = [token if keep else -100 for token, keep in zip(ids, learnt.tolist(), strict=True)]
        row_ids = [10 * number + sample for sample in range(len(samples))]
        rows.append(
            {"input_ids": ids, "labels": labels, "seq_lengths": list(samples), "row_ids": row_ids}
        )
    return rows


def apart(rows: list[dict]) -> list[dict]:
    """The samples of packed rows as rows of their own."""
    samples = []
    for row in rows:
        start = 0
        for length, number in zip(row["seq_lengths"], row["row_ids"], strict=True):
            end = start + length
            samples.append(
                {
                    "input_ids": row["input_ids"][start:end],
                    "labels": row["labels"][start:end],
                    "seq_lengths": [length],
                    "row_ids": [number],
                }
            )
            start = end
    return samples


def for_model(batch: dict) -> dict:
    return {name: value for name, value in batch.items() if name not in ("row_ids", "tokens")}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_logits_equal_those_of_single_rows(attention: str, training: bool) -> None:
    model = llama(attention).train(training)
    rows = packed_rows()
    batch = for_model(Collate(PAD)(rows))
    assert "attention_mask" not in batch
    packed = model(**batch, use_cache=False).logits
    singles = [
        model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0]
        for row in apart(rows)
    ]
    start = 0
    for row, logits in zip(rows, packed, strict=True):
        count = len(row["seq_lengths"])
        expected = torch.cat(singles[start : start + count])
        torch.testing.assert_close(logits[: len(expected)], expected, rtol=0, atol=1e-6)
        start += count
    assert torch.isfinite(packed).all()  # padding included: a NaN there would reach the gradients


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_loss_and_gradients_equal_those_of_padded_rows(attention: str) -> None:
    rows = packed_rows()
    results = []
    for batch in (Collate(PAD)(rows), Collate(PAD)(apart(rows))):
        model = llama(attention).train()
        loss = model(**for_model(batch), use_cache=False).loss
        loss.backward()
        results.append((loss, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)


def test_an_all_ones_mask_would_let_samples_see_each_other() -> None:
    """Shows that the tests above can fail: the usual mask is wrong for packed rows."""
    model = llama("sdpa").eval()
    batch = for_model(Collate(PAD)(packed_rows()))
    right = model(**batch, use_cache=False).logits
    mask = torch.ones_like(batch["input_ids"])
    wrong = model(**batch, attention_mask=mask, use_cache=False).logits
    assert (right - wrong).abs().max() > 0.01


def test_both_ways_of_batching_count_the_same_labels() -> None:
    rows = packed_rows()
    packed, single = Collate(PAD)(rows), Collate(PAD)(apart(rows))
    assert (packed["labels"] != -100).sum() == (single["labels"] != -100).sum() > 0
    assert packed["tokens"] == single["tokens"] == sum(map(sum, PACKED))


def test_plain_rows_are_padded_on_the_right_and_masked() -> None:
    rows = [
        {"input_ids": [7, 8, 9], "labels": [-100, 8, 9], "seq_lengths": [3], "row_ids": [4]},
        {"input_ids": [5], "labels": [5], "seq_lengths": [1], "row_ids": [11]},
    ]
    batch = Collate(99)(rows)
    assert batch["input_ids"].tolist() == [[7, 8, 9], [5, 99, 99]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 8, 9], [-100, -100, -100]]
    assert batch["row_ids"] == [[4], [11]] and batch["tokens"] == 4
    assert "position_ids" not in batch


def test_packed_rows_carry_what_flash_attention_needs() -> None:
    batch = Collate(PAD)(packed_rows())
    width = max(map(sum, PACKED))
    assert batch["position_ids"][1].tolist() == [*range(7), 0, *range(width - 8)]
    lengths = batch["cu_seq_lens_q"].diff().tolist()
    # Padding is a sample of its own, so that the lengths fill the batch laid end to end.
    expected = [5, 9, 3, 7, 1, width - 8, 12, width - 12, 2, 2, 2, 2, 2, width - 10]
    assert lengths == expected and batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == max(expected)
    starts = (batch["position_ids"] == 0).sum().item()
    assert starts == len(expected)
    assert (batch["labels"][batch["position_ids"] == 0] == -100).all()


def test_the_collator_works_in_the_processes_of_a_loader() -> None:
    rows = packed_rows()
    collate = pickle.loads(pickle.dumps(Collate(PAD)))
    loader = DataLoader(rows, batch_size=2, collate_fn=collate, num_workers=1)
    found = [batch["row_ids"] for batch in loader]
    assert found == [[rows[0]["row_ids"], rows[1]["row_ids"]], [r["row_ids"] for r in rows[2:]]]
