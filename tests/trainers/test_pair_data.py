"""Batches of targets with their contexts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import pet_dataset, tiny_backbone, tiny_tokenizer

from pluralrlhf.data.contexts import distinct_contexts, distinct_pairs
from pluralrlhf.modeling import PersonalizedRewardModel
from pluralrlhf.trainers.pair_data import PairData
from pluralrlhf.trainers.plain_pairs import warn_of_lacking_contexts


def pair_data(user_model: str) -> PairData:
    torch.manual_seed(0)
    model = PersonalizedRewardModel.from_backbone(
        tiny_backbone(), user_model, {}, tokenizer=tiny_tokenizer(), max_length=32
    )
    pairs = PairData(model.eval(), progress=False)
    pairs.add("train", pet_dataset(4, 12))
    return pairs


@torch.no_grad()
def test_a_batch_holds_each_distinct_context_once():
    pairs = pair_data("vpl")
    rows = np.arange(48)
    context = pairs.history.context(rows, 3)
    batch = pairs.batch(rows, context)
    assert len(batch["context_index"]) == len(np.unique(context, axis=0)) < len(rows) == len(batch["target_context"])
    alone = pairs.targets(rows) | pairs.context(context)
    assert "target_context" not in alone and len(alone["context_index"]) == len(rows)
    torch.testing.assert_close(pairs.model(**batch).logits, pairs.model(**alone).logits, atol=1e-5, rtol=1e-5)


def test_where_a_target_is_part_of_its_state_nothing_is_shared():
    pairs = pair_data("soft_tokens")
    rows = np.arange(12)
    batch = pairs.batch(rows, pairs.history.context(rows, 3))
    assert "target_context" not in batch and len(batch["context_index"]) == len(rows)


@pytest.mark.parametrize("n, k", [(0, 3), (1, 0), (3, 0), (1, 2), (4, 3)])
@pytest.mark.parametrize("turned", [False, True])
def test_distinct_contexts_and_pairs_are_the_contexts(n, k, turned):
    rng = np.random.default_rng(0)
    rows = rng.integers(-1, 2, (n, k))
    flip = (rng.random((n, k)) < 0.5) if turned else None
    contexts, sides, of_target = distinct_contexts(rows, flip)
    index, mask, pairs, turned_pairs = distinct_pairs(contexts, sides)
    assert index.shape == mask.shape == (len(contexts), max(k, 1)) and of_target.shape == (n,)
    found = np.where(mask, pairs[index] if len(pairs) else -1, -1)[of_target][:, :k]
    np.testing.assert_array_equal(found, rows)
    if turned and len(pairs):
        shown = rows >= 0
        np.testing.assert_array_equal(turned_pairs[index][of_target][:, :k][shown], flip[shown])


def test_responses_that_an_encoder_cannot_tell_apart_are_named(caplog):
    """An English encoder knows no emoji: all of them are the unknown word."""
    unknown = ["\N{CAT}", "\N{DOG}", "\N{SMILING FACE WITH SMILING EYES}"]
    rows = [("a", "b"), (unknown[0], unknown[1]), (unknown[1], unknown[2]), ("a good cat", "a bad dog")]
    pairs = PairData(PersonalizedRewardModel.from_encoder("offline", "btl"), progress=False)
    data = [{"prompt": "which?", "chosen": a, "rejected": b} for a, b in rows]
    pairs.add("words", Dataset.from_list([data[0], data[3]]))
    assert "cannot tell apart" not in caplog.text
    pairs.add("emoji", Dataset.from_list(data))
    assert "50 % of the pairs of split emoji" in caplog.text and "`offline` cannot tell apart" in caplog.text
    assert "is not seen" not in caplog.text
    pairs.add("long", Dataset.from_list([{"prompt": "which?", "chosen": "cat " * 600, "rejected": "dog"}]))
    limit = pairs.model.encoder.max_length
    assert f"1 of 2 texts of split long are longer than the {limit} tokens" in caplog.text


def plain(rows):
    return Dataset.from_list([{"user_id": "u", "chosen": c, "rejected": r, **more} for c, r, more in rows])


@pytest.mark.parametrize("prompt", [{}, {"prompt": "Which?"}, {"prompt": ""}])
def test_where_prompts_tell_no_pairs_apart_responses_are_the_items(prompt):
    """A pair that was judged twice is no context of itself, and other pairs are."""
    pairs = PairData(PersonalizedRewardModel.from_encoder("offline", "vpl"), progress=False)
    rows = pairs.add("train", plain([("a", "b", prompt), ("c", "d", prompt), ("a", "b", prompt), ("e", "b", prompt)]))
    context = [set(row[row >= 0]) for row in pairs.history.context(rows, 3)]
    assert context == [{1}, {0, 2, 3}, {1}, {1}]


def test_where_prompts_differ_they_are_the_items(caplog):
    pairs = PairData(PersonalizedRewardModel.from_encoder("offline", "vpl"), progress=False)
    one, two = {"prompt": "one"}, {"prompt": "two"}
    rows = pairs.add("train", plain([("a", "b", one), ("c", "d", one), ("a", "b", two)]))
    assert [set(row[row >= 0]) for row in pairs.history.context(rows, 3)] == [{2}, {2}, {0, 1}]
    warn_of_lacking_contexts(pairs.history, rows, 8)
    assert not caplog.text
    same = Dataset.from_list([{**row, "item_ids": ["i"]} for row in plain([("a", "b", one), ("c", "d", two)])])
    alone = PairData(PersonalizedRewardModel.from_encoder("offline", "vpl"), progress=False)
    warn_of_lacking_contexts(alone.history, alone.add("train", same), 0)
    assert not caplog.text
    warn_of_lacking_contexts(alone.history, np.arange(2), 8)
    assert "100 % of the training pairs have no context" in caplog.text
