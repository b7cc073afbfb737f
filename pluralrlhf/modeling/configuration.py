"""Configuration of a personalised reward model."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..errors import ConfigError


@strict
class PersonalizedRewardModelConfig(PreTrainedConfig):
    r"""Configuration of [`PersonalizedRewardModel`].

    Args:
        user_model: Name of the user model, a key of `pluralrlhf.user_models.USER_MODELS`.
        user_model_kwargs: Settings of the user model; its dataclass rejects unknown keys.
        feature_dim: d, size of a response's features.
        encoder: For frozen features: what `pluralrlhf.features.load_encoder` needs, with the encoder's `fingerprint`;
            the encoder itself is named, not shipped.
        encoder_input: For frozen features, what is embedded: `response`, `joined` (prompt and response as one text)
            or `concat` (both, their embeddings side by side).
        backbone: For a backbone that is part of the model: its configuration as a dictionary with `model_type`.
        backbone_name_or_path: Where the backbone's weights came from, when an adapter is saved without them.
        pooling: `last`, `mean` or `cls` token states of the backbone.
        max_length: Longest token sequence; longer ones keep their end. `None` is no limit.
    """

    model_type = "personalized_reward"

    user_model: str = "btl"
    user_model_kwargs: dict[str, Any] | None = None
    feature_dim: int | None = None
    encoder: dict[str, Any] | None = None
    encoder_input: str = "response"
    backbone: dict[str, Any] | None = None
    backbone_name_or_path: str | None = None
    pooling: str = "last"
    max_length: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        kwargs.setdefault("num_labels", 1)
        if self.encoder_input not in ("response", "joined", "concat"):
            raise ConfigError(f"`encoder_input` is {self.encoder_input!r}; use response, joined or concat.")
        super().__post_init__(**kwargs)

    def backbone_config(self) -> PreTrainedConfig | None:
        """The backbone's own configuration object, `None` for frozen features."""
        if self.backbone is None:
            return None
        settings = dict(self.backbone)
        model_type = settings.pop("model_type")
        return CONFIG_MAPPING[model_type].from_dict(settings)
