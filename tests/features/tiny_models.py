"""Tiny models and tokenizers made in memory."""

from __future__ import annotations

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SENTENCES = [
    "I like cats more than dogs, and I say so.",
    "The council should widen the road to town.",
    "A user asked for a short answer; an assistant gave a long one.",
    "Nobody knows how many people read the small print.",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(*, pad: bool = True, bos: bool = False, chat: bool = False) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE: any text has a round trip."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>" if pad else None,
        bos_token="<s>" if bos else None,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_backbone(kind: str, vocab_size: int = 400, seed: int = 0) -> transformers.PreTrainedModel:
    """A random backbone; the wide initialisation makes mistakes in masks and positions visible."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 96,
        "initializer_range": 0.2,
    }
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**shape), add_pooling_layer=False).eval()
    shape["num_key_value_heads"] = 2
    if kind == "gemma":
        return transformers.GemmaModel(transformers.GemmaConfig(**shape, head_dim=8, pad_token_id=1)).eval()
    config, model = {
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2Model),
        "llama": (transformers.LlamaConfig, transformers.LlamaModel),
    }[kind]
    return model(config(**shape, pad_token_id=1)).eval()
