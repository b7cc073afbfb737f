"""A word-level tokenizer and a small Llama for worlds whose language is closed: everything here trains on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ ('<agent> ' if message['role'] == 'assistant' else '<user> ') + message['content'] + ' <end> ' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<agent> ' }}{%- endif -%}"
)


def tiny_tokenizer(texts: Iterable[str], *, prose: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a word, over the words of `texts`, with a chat template.

    Args:
        texts: Whatever is to be read or written.
        prose: Lower the case, and let punctuation be tokens of their own.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<end>", "<user>", "<agent>"]
    splitter = pre_tokenizers.Whitespace() if prose else pre_tokenizers.WhitespaceSplit()
    lowered = (text.lower() if prose else text for text in texts)
    words = sorted({word for text in lowered for word, _ in splitter.pre_tokenize_str(text)} - set(special))
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + words)}, unk_token="<unk>"))
    backend.pre_tokenizer = splitter
    if prose:
        backend.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<agent>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_policy(
    tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, hidden_size: int = 96, layers: int = 2, heads: int = 4
) -> LlamaForCausalLM:
    """A Llama of a quarter of a million parameters with random weights.

    The embeddings start at a standard deviation of 0.1 (at the usual 0.02 a model this small hardly learns).
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
