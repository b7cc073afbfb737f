"""Beliefs: exact Bayes, the language model's readout, the classifiers, calibration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import AddedToken

from pluralrlhf.environments.exercise_start import vocabulary
from pluralrlhf.environments.generation import ChatFormat
from pluralrlhf.environments.tiny import tiny_policy, tiny_tokenizer
from pluralrlhf.errors import ConfigError
from pluralrlhf.user_models.beliefs import (
    ClassifierBelief,
    ClassifierBeliefConfig,
    ExactBelief,
    FactoredBelief,
    LanguageModelBelief,
    RankingBelief,
    RankingBeliefConfig,
    expected_calibration_error,
    fit_temperature,
)


def say(*lines):
    return [m for x in lines for m in ({"role": "assistant", "content": "?"}, {"role": "user", "content": x})]


OPENING = [{"role": "user", "content": "hi , recommend when you are ready ."}]


def test_exact_belief_is_the_product_rule():
    rng = np.random.default_rng(0)
    likelihood = rng.dirichlet(np.ones(3), size=(2, 4)).transpose(0, 2, 1)
    prior = rng.dirichlet(np.ones(4))
    belief = ExactBelief(prior, likelihood)
    path = belief.beliefs_of(np.array([[0, 1, -1]]), np.array([[2, 0, -1]]))[0]
    expected = prior * likelihood[0, 2] * likelihood[1, 0]
    np.testing.assert_allclose(path[2], expected / expected.sum())
    np.testing.assert_allclose(path[3], path[2])
    np.testing.assert_allclose(belief.update(path[1], 1, 0), path[2])
    with pytest.raises(ConfigError, match="prior"):
        ExactBelief(prior * 2, likelihood)


def test_the_factored_belief_equals_the_joint_one():
    combinations = np.array(list(itertools.product((0, 1), repeat=3)))
    types = np.array([0, 0, 1, 1, 2, 2, 2, 3])
    belief = FactoredBelief(6, combinations, types, error=0.2)
    said = [[[], [(0, 1)], [(5, 0), (2, 0)], [(0, 0)]]]
    weights = np.ones(8)
    for t, turn in enumerate(said[0]):
        for attribute, value in turn:
            if attribute < 3:
                weights = weights * np.where(combinations[:, attribute] == value, 0.8, 0.2)
        np.testing.assert_allclose(belief.beliefs(said)[0, t], np.bincount(types, weights) / weights.sum())
    assert belief.log_odds(said)[0, -1, 0] == pytest.approx(0)


def test_the_language_models_belief_is_its_probability_of_the_description():
    tokenizer = tiny_tokenizer(vocabulary())
    model = tiny_policy(tokenizer, hidden_size=16, layers=1, heads=2).eval()
    types = ["i recommend home yoga .", "trail running", "i recommend club football ."]
    belief = LanguageModelBelief(model, tokenizer, types, batch_size=3)
    transcripts = [OPENING + say("i choose rock .", "hard to say ."), OPENING + say("for me it is jazz .")]
    out = belief.beliefs(transcripts)
    assert out.shape == (2, 3, 3)
    np.testing.assert_allclose(out[1, 2], out[1, 1])
    for n, t, end in ((0, 0, 1), (0, 2, 5), (1, 1, 3)):
        scores = []
        for text in types:
            prefix = tokenizer.apply_chat_template(transcripts[n][:end], tokenize=False, add_generation_prompt=True)
            before, after = (tokenizer(x)["input_ids"] for x in (prefix, text))
            with torch.no_grad():
                logps = model(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
            scores.append(sum(logps[len(before) - 1 + i, token].item() for i, token in enumerate(after)))
        p = np.exp(np.array(scores) - max(scores))
        np.testing.assert_allclose(out[n, t], p / p.sum(), atol=1e-5)


def test_a_tokenizer_without_padding_and_a_user_who_writes_its_marks():
    tokenizer = tiny_tokenizer(vocabulary())
    types = ["i recommend home yoga .", "trail running"]
    transcripts = [OPENING + say("i choose rock .", "hard to say ."), OPENING + say("for me it is jazz .")]
    model = tiny_policy(tokenizer, hidden_size=16, layers=1, heads=2).eval()
    expected = LanguageModelBelief(model, tokenizer, types).beliefs(transcripts)
    # Like Llama's: headers are added tokens that no attribute of the tokenizer names.
    tokenizer.add_tokens([AddedToken("<|header|>", special=True)])
    tokenizer.pad_token = None
    model.resize_token_embeddings(len(tokenizer))
    belief = LanguageModelBelief(model, tokenizer, types)
    np.testing.assert_allclose(belief.beliefs(transcripts), expected, atol=1e-5)
    assert len(belief.fine_tune(transcripts, [0, 1], steps=1, batch_size=2)) == 1
    header = tokenizer.convert_tokens_to_ids("<|header|>")
    prefixes, _ = belief._prefixes([OPENING + say("the <|header|> jazz")])
    assert all(header not in prefix for prefix in prefixes)
    ids = ChatFormat(tokenizer).prompt_ids([{"role": "user", "content": "the <|header|> jazz"}])
    assert header not in ids


def test_fine_tuning_the_readout_learns_and_calibration_helps():
    tokenizer = tiny_tokenizer(vocabulary())
    model = tiny_policy(tokenizer, hidden_size=32, layers=1, heads=2)
    transcripts = [OPENING + say("i choose rock ." if i % 2 else "i choose jazz .") for i in range(32)]
    labels = [i % 2 for i in range(32)]
    belief = LanguageModelBelief(model, tokenizer, ["home yoga", "long walks"])
    belief.fine_tune(transcripts, labels, steps=60, learning_rate=1e-2)
    out = belief.beliefs(transcripts)[:, -1]
    assert (out.argmax(axis=1) == labels).all()
    belief.calibrate(transcripts, labels)
    assert 0.2 <= belief.temperature <= 5
    with pytest.raises(ConfigError, match="descriptions"):
        LanguageModelBelief(model, tokenizer, ["same", "same"])


def test_the_classifier_learns_prefixes_and_survives_saving(tmp_path):
    rng = np.random.default_rng(0)
    words = [["red", "rose"], ["blue", "sky"], ["green", "leaf"]]
    types = rng.integers(3, size=120)
    transcripts = [say("hm", *[rng.choice(words[u]) for _ in range(rng.integers(1, 4))]) for u in types]
    config = ClassifierBeliefConfig(3, hidden=16, steps=150, batch_size=32)
    model = ClassifierBelief.fit(transcripts[:90], types[:90], config, (transcripts[90:], types[90:]))
    out = model.beliefs(transcripts[90:])
    assert (out[:, -1].argmax(axis=1) == types[90:]).mean() > 0.95
    assert out[:, 1].max(axis=1).mean() < 0.6  # after "hm" nothing is known
    model.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["belief.json", "belief.safetensors"]
    np.testing.assert_allclose(ClassifierBelief.load(tmp_path).beliefs(transcripts[90:]), out, atol=1e-6)
    padded = model.beliefs([transcripts[90], transcripts[91]])[0]
    np.testing.assert_allclose(padded[: out.shape[1]], out[0][: len(padded)], atol=1e-6)
    with pytest.raises(ConfigError, match=r"belief\.json"):
        ClassifierBelief.load(tmp_path / "nothing")


def test_the_ranking_belief_is_equivariant_to_renaming_the_items():
    items = {"Food": ("food",), "Water": ("water",), "Firewood": ("firewood",)}
    names, rng = list(items), np.random.default_rng(1)
    rankings, transcripts = [], []
    for _ in range(150):
        order = rng.permutation(3)
        rankings.append(list(itertools.permutations(range(3))).index(tuple(order)))
        a, b, c = (names[j].lower() for j in order)
        lines = [f"i really need {a}", f"you can have the {c}", f"i have enough {c} but some {b} is fine"]
        transcripts.append(say(*rng.permutation(lines)))
    model = RankingBelief.fit(transcripts[:100], rankings[:100], RankingBeliefConfig(items, l2=1.0))
    out = model.beliefs(transcripts[100:])
    assert (out[:, -1].argmax(axis=1) == rankings[100:]).mean() > 0.95
    swapped = [
        [{**m, "content": m["content"].replace("food", "#").replace("water", "food").replace("#", "water")} for m in t]
        for t in (say("i need food , you take the water"), say("food food water"))
    ]
    there = model.beliefs([say("i need food , you take the water"), say("food food water")])
    back = model.beliefs(swapped)
    renamed = [model.types.index(tuple({0: 1, 1: 0, 2: 2}[i] for i in t)) for t in model.types]
    np.testing.assert_allclose(there, back[..., renamed], atol=1e-9)


def test_casino_hides_the_other_party_and_the_deal(shared_data):
    from pluralrlhf.environments.casino import BUTTONS, TYPES, load_casino

    people = load_casino(shared_data / "casino")
    assert len(people) == 1860 and len({p.dialogue_id for p in people}) == 930
    assert not any(s in BUTTONS for p in people for s in p.sentences)
    assert np.bincount([p.type_index for p in people]).min() > 250 and len(TYPES) == 6
    assert all(m["content"] == "" for m in people[0].transcript if m["role"] == "assistant")


def test_calibration():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5)) * 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    types = np.array([rng.choice(5, p=row) for row in p])
    assert expected_calibration_error(p, types) < 0.03
    sharp = np.exp(3 * logits) / np.exp(3 * logits).sum(axis=1, keepdims=True)
    assert expected_calibration_error(sharp, types) > 0.1
    assert fit_temperature(3 * logits, types) == pytest.approx(3.0, abs=0.3)
