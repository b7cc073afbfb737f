"""Users as texts: what [`PersonalizedRewardModel`] does where its user model takes the text route."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..features.prefix import PrefixTokenizer
from ..features.tokenization import Messages
from ..user_models import UserState
from ..user_models.text import TextState, UserContext
from ..user_models.text.base import summary_prefix
from .packing import packed_features

if TYPE_CHECKING:
    from .model import PersonalizedRewardModel


def encode_contexts(model: PersonalizedRewardModel, contexts: Sequence[UserContext]) -> TextState:
    """States of several users; a summariser is loaded from beside the model when it is first needed."""
    head = model.user_model
    if hasattr(head, "load") and not head._summarizer:
        head.load(model.config.name_or_path or None, **model.hub_options)
    texts, prefixes = head.texts(contexts), head.prefixes(contexts)
    return TextState(head.name, {"none": torch.zeros(len(contexts), 0)}, {}, texts, prefixes)


def encode_histories(model: PersonalizedRewardModel, histories: Sequence[Sequence[dict[str, Any]]]) -> TextState:
    """States of several users from a list of labelled pairs each."""
    if model.user_model.reads_users:
        raise ConfigError(
            f"This model reads `{model.user_model.config.source}` of the `users` config, not pairs: pass it as "
            "`UserContext(user=...)` to `pluralrlhf.modeling.text.encode_contexts`, or a text as `user_text(...)`."
        )
    return encode_contexts(model, [UserContext(tuple(history)) for history in histories])


def user_text(model: PersonalizedRewardModel, text: str) -> TextState:
    """State of a user whose summary is given: typed, or edited by hand."""
    name = model.config.user_model
    if getattr(model.user_model, "route", "head") != "text":
        raise ConfigError(
            f"The model's user model is {name!r}, which has no text; a summary can only be read by {TEXTUAL}."
        )
    return TextState(name, {"none": torch.zeros(1, 0)}, {"edited": True}, [text], [summary_prefix(text)])


TEXTUAL = "a text-route model (plus, icl, extract, oracle ...)"


@torch.no_grad()
def text_rewards(
    model: PersonalizedRewardModel,
    prompts: Sequence[Messages],
    responses: Sequence[Messages],
    state: TextState | None,
    batch_size: int = 32,
    packing: str | None = None,
) -> Tensor:
    """(n,) rewards of responses under n texts; `packing: shared_prefix` reads each text once a batch."""
    if state is not None and not isinstance(state, TextState):
        raise ConfigError(
            f"`state` is a {type(state).__name__}, in which there is no text of the user. Give what `encode_user`, "
            "`encode_contexts` or `user_text` returns."
        )
    prefixes = [[]] * len(prompts) if state is None else state.prefixes
    head = model.user_model
    if head.config.reader == "embedding":
        features = head.standardize(model.featurize(prompts, responses))
        texts = [""] * len(prompts) if state is None else state.texts
        known = torch.tensor([bool(text) for text in texts], device=features.device)
        values = model.featurize([""] * len(texts), [text or " " for text in texts])
        values = head.standardize(values.to(head.feature_mean.device))
        return head.score(features, UserState(head.name, {"text": values * known[:, None]}))
    if getattr(model, "_prefix_tokenizer", None) is None:
        model._prefix_tokenizer = PrefixTokenizer(model.tokenizer)
    rows = [
        model._prefix_tokenizer.ids(prefix, prompt, response, model.config.max_length)[0]
        for prefix, prompt, response in zip(prefixes, prompts, responses)
    ]
    if packing is not None:
        number: dict[str, int] = {}
        owner = [number.setdefault(json.dumps(prefix), len(number)) for prefix in prefixes]
        features = head.standardize(packed_features(model, rows, owner, batch_size))
        return head.score(features, UserState(head.name, {}))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = torch.zeros(len(rows), device=head.feature_mean.device)
    for start in range(0, len(rows), batch_size):
        at = order[start : start + batch_size]
        batch = model.tokenizer.pad({"input_ids": [rows[i] for i in at]}, return_tensors="pt", padding_side="right")
        logits = model(batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)).logits
        out[torch.tensor(at)] = logits.squeeze(-1).to(out)
    return out
