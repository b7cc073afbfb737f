"""The model that `PersonalizedRewardTrainer` trains, from what it was given."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError, loading
from ..features.encoder_loading import load_encoder
from ..modeling import PersonalizedRewardModel, PersonalizedRewardModelConfig
from ..user_models import build_user_model, check_user_model, registered, user_model_class
from .plain_pairs import one_prompt
from .reward_config import PersonalizedRewardConfig


def build_reward_model(
    model: str | PreTrainedModel | None,
    args: PersonalizedRewardConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    train_dataset: Dataset,
    quantization_config: Any = None,
) -> tuple[PersonalizedRewardModel, PreTrainedTokenizerBase]:
    """The reward model and the tokenizer that TRL asks for."""
    if isinstance(model, PersonalizedRewardModel):
        given, own = args.user_model_kwargs, model.config.user_model_kwargs
        if given and given != own:
            raise ConfigError(
                f"`user_model_kwargs` is {given}, but `model` is a reward model that was made with {own or {}}. Leave it out: "
                "a model that is trained further keeps its user model."
            )
        if model.backbone is None:
            return model, tokenizer or model.encoder.tokenizer
        model.tokenizer = tokenizer or model.tokenizer
        return model, model.tokenizer
    if args.encoder is not None:
        if model is not None:
            raise ConfigError(
                f"Both `model` and `args.encoder` ({args.encoder!r}) are given. `encoder` is for frozen features, "
                "`model` for a backbone that is trained: leave one out."
            )
        options = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
        if unknown := sorted(options.keys() - {"trust_remote_code", "revision", "dtype"}):
            raise ConfigError(
                f"`model_init_kwargs` holds {', '.join(unknown)}; an `encoder` takes `revision`, `dtype` and "
                "`trust_remote_code`."
            )
        options |= {"max_length": args.max_length} if args.max_length != type(args).max_length else {}
        encoder = load_encoder(args.encoder, pooling=args.pooling, **options)
        mode = args.encoder_input
        if mode == "auto":
            mode = "response" if one_prompt(train_dataset) else "concat"
        model = PersonalizedRewardModel.from_encoder(
            encoder, args.user_model, args.user_model_kwargs, encoder_input=mode
        )
        return model, tokenizer or encoder.tokenizer
    if model is None:
        raise ConfigError("Give `args.encoder` (frozen features) or `model` (a backbone to train).")
    options = dict(args.model_init_kwargs or {}) if isinstance(model, str) else {}
    if isinstance(model, str):
        options.setdefault("dtype", torch.float32)
        options.setdefault("trust_remote_code", args.trust_remote_code)
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
        if tokenizer is None:
            from transformers import AutoTokenizer

            with loading("model_name_or_path", model):
                tokenizer = AutoTokenizer.from_pretrained(model, revision=options.get("revision") or "main")
    if tokenizer is None:
        raise ConfigError("`processing_class` is required with a backbone given as an object: its tokenizer.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = PersonalizedRewardModel.from_backbone(
        model,
        args.user_model,
        args.user_model_kwargs,
        tokenizer=tokenizer,
        pooling=args.pooling,
        max_length=args.max_length,
        **options,
    )
    return model, tokenizer


def check_own_method(config: PersonalizedRewardModelConfig) -> None:
    """Asks a method from outside of the package whether it keeps the contract, of a fresh one with these settings.

    Raises:
        ConfigError: It does not; see [`check_user_model`].
    """
    if registered(config.user_model) and user_model_class(config.user_model).route == "head":
        with torch.random.fork_rng(devices=[]):
            check_user_model(build_user_model(config.user_model, config.feature_dim, config.user_model_kwargs))
