"""`PersonalizedRewardModel`: a backbone or frozen features, and a user model on top."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import ConfigError, loading
from ..features.encoder_loading import load_encoder
from ..features.encoders import TextEncoder
from ..features.pooling import pool
from ..features.shared_prefix import PackedTrees
from ..hub import VERSION_OPTIONS, hub_copy, may_be_on_hub
from ..user_models import UserState, bradley_terry_loss, build_user_model
from . import conditioned
from .configuration import PersonalizedRewardModelConfig
from .construction import Construction
from .inference import UserInference
from .precision import full_precision
from .saving import ADAPTER, load_with_adapter, save_with_adapter
from .token_features import TokenFeatures


@dataclass
class RewardOutput(ModelOutput):
    """Output of [`PersonalizedRewardModel`].

    Args:
        loss: Scalar, for pairs.
        logits: (2B, 1) rewards, chosen first, for pairs; (B, 1) for single responses.
        metrics: The user model's own metrics, detached scalars.
        log_odds: (B,) of the predictive probability of the choice: for pairs, when not training, where the user model has
            them in closed form and they differ from the difference of rewards.
        features: (2B, d) raw features, chosen first, where they were asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    metrics: dict[str, Tensor] | None = None
    log_odds: Tensor | None = None
    features: Tensor | None = None


class PersonalizedRewardModel(Construction, UserInference, TokenFeatures, PreTrainedModel):
    """Reward model conditioned on a user.

    Example:

    ```python
    >>> import pluralrlhf
    >>> model = pluralrlhf.PersonalizedRewardModel.from_pretrained("runs/pets/vpl")
    >>> user = model.encode_user([{"prompt": "Which pet?", "chosen": "Get a cat.", "rejected": "Get a dog."}])
    >>> model.score(["What should I adopt?"] * 2, ["A kitten.", "A puppy."], user)
    ```

    Args:
        config: [`PersonalizedRewardModelConfig`].
        backbone: An `AutoModel` already loaded; built from the configuration where none is given.
    """

    config_class = PersonalizedRewardModelConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Also where `dtype` says otherwise: see `full_precision`.
    _keep_in_fp32_modules_strict = {"user_model"}

    def __init__(self, config: PersonalizedRewardModelConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        if config.feature_dim is None:
            raise ConfigError("`feature_dim` is None; build the model with `from_encoder` or `from_backbone`.")
        if backbone is None and config.backbone is not None:
            backbone = AutoModel.from_config(config.backbone_config())
        self.backbone = backbone
        self.user_model = build_user_model(config.user_model, config.feature_dim, config.user_model_kwargs)
        if backbone is None and self.user_model.route == "backbone":
            raise ConfigError(
                f"`{config.user_model}` changes what a backbone computes and cannot work on the frozen features of an "
                "`encoder`. Give a backbone to train (`--model_name_or_path`) instead."
            )
        # Lists, because a module assigned as an attribute would become part of the weights.
        self._encoder: list[TextEncoder] = []
        self._peft_model: list = []
        self._tokenizer: Any = None
        # What else belongs to a model on the Hub (tokenizer, summariser) is read later, of the version that was asked for.
        self.hub_options: dict[str, Any] = {}
        self.post_init()

    def _init_weights(self, module) -> None:
        # PyTorch's own initialisation, made at construction, stands: heads at a standard deviation of 0.02 hardly learn.
        return

    # Loading and saving

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> PersonalizedRewardModel:
        """Loads a saved model, from a folder or the Hub; one with an `adapter/` gets its backbone from `base/` or its id."""
        folder = Path(str(pretrained_model_name_or_path))
        if (folder / "build.json").is_file():
            raise ConfigError(f"{folder} is a dataset folder; give the folder that `train reward` wrote.")
        if not folder.exists() and not may_be_on_hub(folder):
            raise ConfigError(f"There is no folder {folder}. Check the path, or give a Hub id such as `user/model`.")
        with loading("model", pretrained_model_name_or_path):
            folder = hub_copy(folder, ADAPTER, **kwargs) or folder
            if (folder / ADAPTER).is_file():
                return load_with_adapter(cls, folder, **kwargs)
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`
        model.hub_options = {key: kwargs[key] for key in VERSION_OPTIONS if key in kwargs}
        return loaded

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Saves weights (safetensors), configuration and, for a backbone, its tokenizer; adapters beside their base."""
        if self._peft_model:
            save_with_adapter(self, self._peft_model[0], save_directory)
        else:
            super().save_pretrained(save_directory, **kwargs)
        if self._tokenizer is not None and self.config.backbone is not None:
            self._tokenizer.save_pretrained(save_directory)

    def attach_adapter(self, peft_model) -> None:
        """Notes the `PeftModel` that wraps this model, so that saving and loading keep the adapter apart."""
        self._peft_model[:] = [peft_model]

    @property
    def encoder(self) -> TextEncoder | None:
        """The frozen encoder, loaded by its name when first needed; `None` for a backbone.

        Raises:
            ConfigError: What is installed under that name has another hash than the one trained on, or cannot be
                loaded. One that brings its own code is set: `model.encoder = load_encoder(name, trust_remote_code=True)`.
        """
        if not self._encoder and self.config.encoder is not None:
            spec = dict(self.config.encoder)
            expected = spec.pop("fingerprint", None)
            encoder = load_encoder(**spec, device=str(self.user_model.feature_mean.device))
            if expected and encoder.fingerprint != expected:
                raise ConfigError(
                    f"The encoder {spec['name']!r} has hash {encoder.fingerprint}, this model was trained on "
                    f"{expected}. Install the same release of the encoder, or train again."
                )
            self._encoder.append(encoder)
        return self._encoder[0] if self._encoder else None

    @encoder.setter
    def encoder(self, encoder: TextEncoder) -> None:
        self._encoder[:] = [encoder]

    @property
    def tokenizer(self):
        """The backbone's tokenizer, loaded from the model's folder or the backbone's id when first needed."""
        if self._tokenizer is None and self.config.backbone is not None:
            own = self.config.name_or_path
            source, options = (own, self.hub_options) if own else (self.config.backbone_name_or_path, {})
            self._tokenizer = AutoTokenizer.from_pretrained(source, **options)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer) -> None:
        self._tokenizer = tokenizer

    def get_input_embeddings(self):
        return None if self.backbone is None else self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value) -> None:
        if self.backbone is not None:
            self.backbone.set_input_embeddings(value)

    # Forward

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        features: Tensor | None = None,
        chosen_input_ids: Tensor | None = None,
        chosen_attention_mask: Tensor | None = None,
        rejected_input_ids: Tensor | None = None,
        rejected_attention_mask: Tensor | None = None,
        chosen_features: Tensor | None = None,
        rejected_features: Tensor | None = None,
        context_features: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        context_index: Tensor | None = None,
        context_mask: Tensor | None = None,
        target_context: Tensor | None = None,
        packed_input_ids: Tensor | None = None,
        packed_position_ids: Tensor | None = None,
        packed_visible_until: Tensor | None = None,
        packed_row: Tensor | None = None,
        packed_token: Tensor | None = None,
        margin: Tensor | None = None,
        n_user_pairs: Tensor | None = None,
        output_features: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> RewardOutput:
        """Rewards of pairs or of single responses.

        Args:
            input_ids, attention_mask: (B, L) single responses; or `features` (B, d). With pairs, the prefix `chosen_`
                and `rejected_` of the same.
            context_features: (N, 2, d) features of the distinct pairs in any context; or `context_input_ids` and
                `context_attention_mask` (2N, L), chosen rows before rejected rows.
            context_index, context_mask: (B, K) rows of the context; absent means k = 0.
            target_context: (B,) where several targets read the same context: which of the C given, (C, K), each reads.
            packed_input_ids, packed_position_ids, packed_visible_until, packed_row, packed_token: All token sequences
                of the batch as prefix trees instead (see `PackedTrees`), in this order: chosen, rejected, the chosen
                side of the context's pairs, their rejected side.
            margin: (B,) subtracted from the difference of rewards in the loss.
            n_user_pairs: (B,) target pairs of each row's user.
            output_features: Return the features alone, without a reward.

        Returns:
            [`RewardOutput`]; `logits` (2B, 1) with the chosen rewards first, or (B, 1).
        """
        pairs = chosen_features is not None or chosen_input_ids is not None or packed_input_ids is not None
        hidden = None
        if packed_input_ids is not None:
            trees = PackedTrees(packed_input_ids, packed_position_ids, packed_visible_until, packed_row, packed_token)
            hidden = self.packed_states(trees)
            of_targets = context_index if target_context is None else target_context
            n_targets = 2 * len(of_targets) if of_targets is not None else len(hidden)
            if output_features:
                features = hidden
            elif self._token_head is None:
                features, context = hidden[:n_targets], hidden[n_targets:]
                context_features = torch.stack(context.chunk(2), dim=1) if len(context) else context_features
        elif chosen_input_ids is not None:
            width = max(chosen_input_ids.shape[1], rejected_input_ids.shape[1])
            input_ids = torch.cat([pad_to(chosen_input_ids, width), pad_to(rejected_input_ids, width)])
            attention_mask = torch.cat([pad_to(chosen_attention_mask, width), pad_to(rejected_attention_mask, width)])
        elif chosen_features is not None:
            features = torch.cat([chosen_features, rejected_features])
        elif input_ids is None and features is None:
            raise ConfigError("Give `input_ids`, `features`, or the `chosen_` and `rejected_` form of either.")
        if output_features:
            return RewardOutput(features=self.pooled(input_ids, attention_mask) if features is None else features)
        if self.user_model.route == "backbone":
            state = conditioned.encode(
                self,
                0 if input_ids is None else len(input_ids) // (2 if pairs else 1),
                context_input_ids,
                context_attention_mask,
                context_index,
                context_mask,
            )
            loss, logits, metrics = conditioned.pair_rewards(
                self, input_ids, attention_mask, state, pairs, margin, n_user_pairs
            )
            return RewardOutput(loss=loss, logits=logits, metrics=metrics)
        if features is None and self._token_head is not None:
            if hidden is not None:
                logits = self._token_rewards(hidden)
            else:
                attention_mask = self._mask_of(input_ids) if attention_mask is None else attention_mask
                logits = pool(
                    self._token_rewards(self.hidden_states(input_ids, attention_mask)), attention_mask, "last"
                )
            loss = bradley_terry_loss(*logits.squeeze(-1).chunk(2), margin).mean() if pairs else None
            return RewardOutput(loss=loss, logits=logits, metrics={})
        if features is None:
            features = self.pooled(input_ids, attention_mask)
        state = self.encode_context(
            len(features) // (2 if pairs else 1),
            context_features,
            context_index,
            context_mask,
            context_input_ids,
            context_attention_mask,
        )
        state = state if target_context is None else state.rows(target_context)
        with full_precision(features.device):
            features = self.user_model.standardize(features)
            if not pairs:
                return RewardOutput(logits=self.user_model.score(features, state)[:, None])
            output = self.user_model(*features.chunk(2), state, margin, n_user_pairs)
            moderated = not self.training and self.user_model.moderates(state)
            log_odds = self.user_model.log_odds(*features.chunk(2), state) if moderated else None
        logits = torch.cat([output.chosen_rewards, output.rejected_rewards])[:, None]
        return RewardOutput(loss=output.loss, logits=logits, metrics=output.metrics, log_odds=log_odds)

    def encode_context(
        self,
        n_rows: int,
        context_features: Tensor | None = None,
        context_index: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
    ) -> UserState:
        """State of `n_rows` users from raw context features, or of k = 0 where there are none."""
        device, d = self.user_model.feature_mean.device, self.config.feature_dim
        if context_input_ids is not None and self.user_model.uses_context:
            pooled = self.pooled(context_input_ids, context_attention_mask)
            context_features = torch.stack(pooled.chunk(2), dim=1)
        if context_features is None or context_index is None:
            context_features = self.user_model.feature_mean.new_zeros(0, 2, d)
            context_index = torch.zeros(n_rows, 0, dtype=torch.long, device=device)
            context_mask = torch.zeros(n_rows, 0, dtype=torch.bool, device=device)
        with full_precision(context_features.device):
            return self.user_model.encode(self.user_model.standardize(context_features), context_index, context_mask)


def pad_to(values: Tensor, width: int) -> Tensor:
    """Right-pads (B, L) with zeros; what a zero id means is masked out."""
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))
