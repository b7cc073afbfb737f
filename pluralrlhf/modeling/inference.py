"""The reward model in use: users from their pairs, scores from texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, NumericError
from ..features.rendering import encoder_parts
from ..features.tokenization import Messages, as_messages, tokenize_response
from ..user_models import UserState
from ..user_models.text import TextState
from . import conditioned
from .packing import check_packing, packed_features
from .text import encode_histories, text_rewards


class UserInference:
    """Methods of [`PersonalizedRewardModel`] that take texts; they put it in evaluation mode."""

    _hashed: tuple | None = None

    def encoder_texts(self, prompt: Messages, response: Messages) -> list[str]:
        """The texts whose embeddings, side by side, are the features of a response."""
        prompt, response = as_messages(prompt, "user"), as_messages(response, "assistant")
        return encoder_parts(prompt, response, self.config.encoder_input, self.encoder.tokenizer)

    def featurize(
        self,
        prompts: Sequence[Messages],
        responses: Sequence[Messages],
        batch_size: int = 32,
        packing: str | None = None,
    ) -> Tensor:
        """(n, d) raw features of responses to prompts, given as texts or as message lists.

        Args:
            batch_size: Texts that a backbone reads at once.
            packing: `shared_prefix` has a backbone read what texts begin with in common, such as a prompt, once a batch.
        """
        if len(prompts) != len(responses):
            raise ConfigError(f"{len(prompts)} `prompts` and {len(responses)} `responses`; give one prompt each.")
        check_packing(self, packing)
        if self.backbone is None:
            parts = [self.encoder_texts(p, r) for p, r in zip(prompts, responses)]
            if not parts:
                return self.user_model.feature_mean.new_zeros(0, self.config.feature_dim)
            columns = [self.encoder.encode(list(texts)) for texts in zip(*parts)]
            return torch.cat([torch.from_numpy(c).half().float() for c in columns], -1).to(
                self.user_model.feature_mean.device
            )
        ids = [tokenize_response(self.tokenizer, p, r, self.config.max_length)[0] for p, r in zip(prompts, responses)]
        if packing is not None:
            return packed_features(self, ids, batch_size=batch_size)
        out = []
        for start in range(0, len(ids), batch_size):
            padded = self.tokenizer.pad({"input_ids": ids[start : start + batch_size]}, return_tensors="pt")
            out.append(self.pooled(padded["input_ids"].to(self.device), padded["attention_mask"].to(self.device)))
        return torch.cat(out) if out else self.user_model.feature_mean.new_zeros(0, self.config.feature_dim)

    def encode_user(self, pairs: Sequence[dict[str, Any]] | None = None) -> UserState:
        """What the model makes of one user's labelled pairs.

        Args:
            pairs: Dictionaries with `prompt`, `chosen`, `rejected` (texts or message lists) and optionally `pair_id`;
                none is the state of an unknown user.
        """
        if isinstance(pairs, str | dict):
            raise ConfigError(f"`pairs` is a {type(pairs).__name__}; give a list of dictionaries, one a pair.")
        state = self.encode_users([list(pairs or [])])
        state.provenance["model"] = self.config.name_or_path
        if self.user_model.route != "text":
            state.provenance["user_model_sha256"] = self._user_model_sha256()
        state.provenance["pair_ids"] = [pair.get("pair_id") for pair in pairs or []]
        return state

    @torch.no_grad()
    def encode_users(self, histories: Sequence[Sequence[dict[str, Any]]]) -> UserState:
        """States of several users at once, from a list of pairs each; see `encode_user`."""
        self.eval()
        if not len(histories):
            raise ConfigError(
                "`histories` is empty; give a list of pairs for each user, an empty one for an unknown user."
            )
        pairs = [pair for history in histories for pair in history]
        for number, pair in enumerate(pairs, 1):
            if not isinstance(pair, dict):
                raise ConfigError(f"`pairs`, number {number}, is a {type(pair).__name__}; give dictionaries.")
            missing = [key for key in ("prompt", "chosen", "rejected") if not pair.get(key)]
            if missing:
                raise ConfigError(f"`pairs`, number {number}: no {', '.join(missing)}. Each pair needs all three.")
            for key in ("prompt", "chosen", "rejected"):
                _check_texts(f"pairs[{number - 1}][{key!r}]", [pair[key]])
            if pair["chosen"] == pair["rejected"]:
                raise ConfigError(
                    f"`pairs`, number {number}: `chosen` equals `rejected`, which says nothing. Leave it out."
                )
        if self.user_model.route == "text":
            return encode_histories(self, histories)
        counts = torch.tensor([len(history) for history in histories], dtype=torch.long)
        mask = torch.arange(int(counts.max())) < counts[:, None]
        index = torch.zeros(mask.shape, dtype=torch.long)
        index[mask] = torch.arange(len(pairs))
        device = self.user_model.feature_mean.device
        if self.user_model.route == "backbone":
            return conditioned.encode_pairs(self, pairs, index.to(device), mask.to(device))
        prompts = [pair["prompt"] for pair in pairs]
        sides = [self.featurize(prompts, [pair[side] for pair in pairs]) for side in ("chosen", "rejected")]
        return self.encode_context(len(counts), torch.stack(sides, 1), index.to(device), mask.to(device))

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[Messages],
        responses: Sequence[Messages],
        state: UserState | None = None,
        *,
        batch_size: int = 32,
        packing: str | None = None,
    ) -> Tensor:
        """(n,) rewards of responses under the state of one user, of n users, or of an unknown user (`None`).

        Args:
            batch_size: Texts that a backbone reads at once.
            packing: `shared_prefix` has a backbone read what texts begin with in common (the text about a user, a prompt)
                once a batch, with the same rewards.

        Raises:
            NumericError: A reward is NaN or infinite.
        """
        return _finite(self._score(prompts, responses, state, batch_size, packing))

    def _score(self, prompts, responses, state, batch_size, packing) -> Tensor:
        for name, given in (("prompts", prompts), ("responses", responses)):
            if isinstance(given, str):
                raise ConfigError(f"`{name}` is one text; give a list, with one entry for each response.")
            _check_texts(name, given)
        self.eval()
        check_packing(self, packing)
        reading = {"batch_size": batch_size, "packing": packing}
        if self.user_model.route == "text":
            if state is not None and len(self._checked(state)) not in (1, len(prompts)):
                raise ConfigError(f"`state` holds {len(state)} users for {len(prompts)} responses; give 1 or as many.")
            if state is not None and len(state) != len(prompts):
                state = state.rows(torch.zeros(len(prompts), dtype=torch.long))
            return text_rewards(self, prompts, responses, state, **reading)
        if self.user_model.route == "backbone":
            return conditioned.text_rewards(self, prompts, responses, state, batch_size)
        features = self.user_model.standardize(self.featurize(prompts, responses, **reading))
        state = self.encode_context(1) if state is None else self._checked(state)
        if len(state) == 1 and len(features) != 1:
            state = state.rows(torch.zeros(len(features), dtype=torch.long, device=features.device))
        if len(state) != len(features):
            raise ConfigError(f"`state` holds {len(state)} users for {len(features)} responses; give 1 or as many.")
        return self.user_model.score(features, state)

    @torch.no_grad()
    def score_matrix(
        self,
        state: UserState,
        prompts: Sequence[Messages],
        responses: Sequence[Messages],
        *,
        batch_size: int = 32,
        packing: str | None = None,
    ) -> Tensor:
        """(U, R) rewards of every response for every user in `state`; arguments and errors are those of `score`."""
        self.eval()
        reading = {"batch_size": batch_size, "packing": packing}
        if self.user_model.route != "head":
            states = [state.rows(slice(number, number + 1)) for number in range(len(state))]
            return torch.stack([self.score(prompts, responses, one, **reading) for one in states])
        features = self.user_model.standardize(self.featurize(prompts, responses, **reading))
        return _finite(self.user_model.score_matrix(features, self._checked(state)))

    def _checked(self, state: UserState) -> UserState:
        if not hasattr(state, "method"):
            raise ConfigError(
                f"`state` is a {type(state).__name__}; give what `encode_user` or `encode_users` returns."
            )
        if state.method != self.config.user_model:
            raise ConfigError(f"`state` was made by `{state.method}`, this model is `{self.config.user_model}`.")
        made_by = state.provenance.get("user_model_sha256") if self.user_model.route != "text" else None
        if made_by is not None and made_by != self._user_model_sha256():
            raise ConfigError(
                f"`state` was made by another `{state.method}` ({state.provenance.get('model') or 'no name'}), whose "
                "numbers mean nothing to this model. Encode the user's pairs again with `encode_user`."
            )
        return state.to(self.user_model.feature_mean.device)

    def _user_model_sha256(self) -> str:
        """Hash of the user model's weights as bfloat16, so that loading in another precision changes nothing."""
        module = self.user_model
        if hasattr(module, "modules_to_save"):
            # Beside what was trained PEFT keeps what it began with, which is drawn anew whenever the model is loaded.
            module = module.modules_to_save[module.active_adapters[0]]
        weights = module.state_dict()
        seen = tuple((value.data_ptr(), value._version) for value in weights.values() if not value.is_inference())
        if self._hashed is None or self._hashed[0] != seen:
            digest = hashlib.sha256()
            for name, value in sorted(weights.items()):
                if value.is_floating_point():
                    value = value.detach().to("cpu", torch.bfloat16).view(torch.int16)
                digest.update(name.encode() + value.cpu().numpy().tobytes())
            self._hashed = seen, digest.hexdigest()
        return self._hashed[1]

    def load_state(self, path: str | Path) -> UserState:
        """Reads a user's state that was exported as JSON."""
        kind = TextState if self.user_model.route == "text" else UserState
        return self._checked(kind.from_json(json.loads(Path(path).read_text(encoding="utf-8"))))


def _check_texts(name: str, given: Sequence[Messages]) -> None:
    """Raises a `ConfigError` for what is neither a text nor messages, or no tokenizer can read."""
    for number, value in enumerate(given):
        contents = [value]
        if isinstance(value, list | tuple):
            contents = [message.get("content") if isinstance(message, Mapping) else None for message in value]
        if not all(isinstance(text, str) for text in contents):
            raise ConfigError(
                f"`{name}`, entry {number + 1}, is a {type(value).__name__} that holds no text; give a text, or a list of "
                "messages with `role` and `content`."
            )
        try:
            "".join(contents).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"`{name}`, entry {number + 1}, holds half of a surrogate pair, which is no character. Clean the text."
            ) from None


def _finite(rewards: Tensor) -> Tensor:
    """The rewards, none of which may be NaN: comparisons with NaN are false, and rankings by it look like any other."""
    if not torch.isfinite(rewards).all():
        wrong = int((~torch.isfinite(rewards)).sum())
        raise NumericError(
            f"{wrong} of {rewards.numel()} rewards are NaN or infinite. Load the model in bfloat16 or float32 (`dtype`); if "
            "they stay, its training diverged, or the user's state is damaged."
        )
    return rewards
