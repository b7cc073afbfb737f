"""What a loaded model says about itself: its pooling, its longest input, and a hash of all that decides its output."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError

if TYPE_CHECKING:
    from .encoders import TextEncoder


def has_transformer(model: torch.nn.Module) -> bool:
    """Whether a sentence-transformers model reads tokens of a transformers tokenizer."""
    return model.transformers_model is not None and hasattr(model.tokenizer, "added_tokens_decoder")


def default_prompt(model: torch.nn.Module) -> str:
    """What a sentence-transformers model puts before every text, if anything."""
    return (model.prompts or {}).get(model.default_prompt_name) or "" if model.default_prompt_name else ""


def default_pooling(config: Any, name: str) -> str:
    """`last` for decoders and `mean` for encoders, by what transformers has heads for.

    Raises:
        ConfigError: if neither is known, or for an encoder-decoder.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"`encoder`: {name!r} is an encoder-decoder ({config.model_type}), which has no single hidden state to "
            "pool. Give a decoder, an encoder or a sentence-transformers model."
        )
    config = config.get_text_config()
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        return "mean"
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "last"
    raise ConfigError(
        f"`pooling`: whether {name!r} ({config.model_type}) is a decoder or an encoder cannot be told. Give "
        "`pooling: last` for a decoder, `mean` or `cls` for an encoder."
    )


def position_limit(model: torch.nn.Module, tokenizer: Any) -> int | None:
    """The model's longest sequence, special tokens included; None where neither model nor tokenizer names one."""
    config = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    embeddings = getattr(model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if isinstance(table, torch.nn.Embedding):
        # RoBERTa and its relatives count positions from padding_idx + 1.
        limits.append(table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))
    limits = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < 10**9]
    return min(limits, default=None)


def fingerprint(encoder: TextEncoder) -> str:
    """32 hex digits over weights, configuration, tokenizer, pooling and length limit; not over names or versions."""
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\0")

    model = encoder.model
    add([encoder.pooling, encoder.max_length])
    if encoder.pooling == "sentence-transformers":
        for module in model:
            config = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
            add([type(module).__name__, config])
        add([default_prompt(model), model.truncate_dim])
    backbone = model.transformers_model if encoder.pooling == "sentence-transformers" else model
    if backbone is not None:
        config = backbone.config.to_dict()
        for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"):
            config.pop(key, None)
        add([type(backbone).__name__, config])
    add(_tokenizer_state(encoder.tokenizer))
    for key, tensor in sorted(model.state_dict().items()):
        add([key, str(tensor.dtype), list(tensor.shape)])
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _tokenizer_state(tokenizer: Any) -> Any:
    """What decides about token ids; the padding and truncation that the last call left behind do not."""
    if not hasattr(tokenizer, "added_tokens_decoder"):
        return type(tokenizer).__name__
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [type(tokenizer).__name__, tokenizer.get_vocab()]
    state = json.loads(backend.to_str())
    state.pop("padding", None)
    state.pop("truncation", None)
    return state
