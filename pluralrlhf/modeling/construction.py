"""How a reward model is made: on a frozen encoder's features, or with a backbone of its own."""

from __future__ import annotations

from typing import Any, Self

import torch
from transformers import AutoModel, PreTrainedModel

from ..errors import loading
from ..features.encoder_loading import load_encoder
from ..features.encoders import TextEncoder
from ..user_models import DEFAULT_USER_MODEL
from .configuration import PersonalizedRewardModelConfig
from .token_features import is_encoder_only


class Construction:
    """Class methods of [`PersonalizedRewardModel`] that make one."""

    @classmethod
    def from_encoder(
        cls,
        encoder: TextEncoder | str,
        user_model: str = DEFAULT_USER_MODEL,
        user_model_kwargs: dict[str, Any] | None = None,
        *,
        encoder_input: str = "response",
        **encoder_kwargs: Any,
    ) -> Self:
        """A model on frozen features of a text encoder.

        Args:
            encoder: A `TextEncoder`, or a name for `load_encoder` (`offline`, a sentence-transformers or `AutoModel`
                id, a folder).
            user_model: Name of the user model.
            user_model_kwargs: Its settings.
            encoder_input: See [`PersonalizedRewardModelConfig`].
        """
        if isinstance(encoder, str):
            encoder = load_encoder(encoder, **encoder_kwargs)
        config = PersonalizedRewardModelConfig(
            user_model=user_model,
            user_model_kwargs=user_model_kwargs,
            feature_dim=encoder.dim * (2 if encoder_input == "concat" else 1),
            encoder=encoder.spec(),
            encoder_input=encoder_input,
        )
        model = cls(config)
        model.encoder = encoder
        return model

    @classmethod
    def from_backbone(
        cls,
        backbone: PreTrainedModel | str,
        user_model: str = DEFAULT_USER_MODEL,
        user_model_kwargs: dict[str, Any] | None = None,
        *,
        tokenizer: Any = None,
        pooling: str | None = None,
        max_length: int | None = None,
        **model_init_kwargs: Any,
    ) -> Self:
        """A model with a backbone of its own, to be trained whole or by LoRA.

        Args:
            backbone: An `AutoModel` (without a language-model head), or an id or folder to load one from.
            tokenizer: Its tokenizer; loaded from the same id when needed.
            pooling: `last` for decoders, `mean` for encoders, unless given.
            model_init_kwargs: Passed to `AutoModel.from_pretrained` (dtype, quantization_config, revision ...).
        """
        name = None
        if isinstance(backbone, str):
            name = backbone
            with loading("model_name_or_path", name):
                backbone = AutoModel.from_pretrained(name, **model_init_kwargs)
        inner = backbone.config.get_text_config()
        settings = {**backbone.config.to_dict(), "model_type": backbone.config.model_type}
        config = PersonalizedRewardModelConfig(
            user_model=user_model,
            user_model_kwargs=user_model_kwargs,
            feature_dim=inner.hidden_size,
            backbone=settings,
            backbone_name_or_path=name or backbone.config.name_or_path or None,
            pooling=pooling or ("mean" if is_encoder_only(backbone) else "last"),
            max_length=max_length,
            pad_token_id=getattr(tokenizer, "pad_token_id", None),
        )
        model = cls(config, backbone)
        model.user_model.to(dtype=torch.float32, device=backbone.device)
        if model.user_model.route == "backbone":
            model.user_model.attach(backbone)
        model.tokenizer = tokenizer
        if getattr(backbone, "is_quantized", False):
            model.is_quantized, model.hf_quantizer = True, backbone.hf_quantizer
            for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method"):
                if hasattr(backbone, flag):
                    setattr(model, flag, getattr(backbone, flag))
        return model
