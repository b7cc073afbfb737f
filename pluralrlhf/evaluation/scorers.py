"""What the evaluation asks of a reward model: margins of pairs, given contexts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from ..data.contexts import distinct_contexts, distinct_pairs
from ..data.seen import FILE as DIGESTS
from ..data.seen import check_unseen, read_sketch, trained_apart
from ..errors import ConfigError, NumericError
from ..hub import hub_copy, may_be_on_hub
from .controls import Context

if TYPE_CHECKING:
    from ..modeling import PersonalizedRewardModel
    from ..trainers.pair_data import PairData
    from ..user_models import UserModel, UserState

Scores = tuple[np.ndarray, np.ndarray]
_RANDOM_USERS = 256


class Scorer(Protocol):
    """Anything that ranks pairs. Results are rows of `per_pair.parquet` under its `method` and `seed`.

    Attributes:
        method: Name of the method.
        seed: Seed of its training.
        uses_context: False promises the same scores for every context; they are then computed once.
    """

    method: str
    seed: int
    uses_context: bool

    def score(self, rows: np.ndarray, context: Context, predictive: bool = True) -> Scores:
        """Margins and probabilities of the choices in `rows` (B,), each under its own context (B, K): two arrays (B,).

        With `predictive` False the probability may be `sigmoid(margin)` where the predictive one costs more.
        """

    def score_random_state(self, rows: np.ndarray, draw: np.ndarray) -> Scores | None:
        """The same under states of random users, chosen by `draw` (B,) uint64; None for a method without states."""

    def states(self, context: Context) -> np.ndarray | None:
        """(B, d) states as numbers, for a map of users; None for a method without states."""


class RewardModelScorer:
    """A [`PersonalizedRewardModel`] as a scorer.

    Args:
        model: The model; it is put into evaluation mode.
        pairs: The pairs of all splits, for a model with this encoder or backbone.
        method: Name; the user model's by default.
        seed: Seed that it was trained with.
        path: Folder that it came from.
        batch_size: Texts in a batch of the backbone.

    Attributes:
        head: The user model as it reads what `embedded` returns.
    """

    def __init__(
        self,
        model: PersonalizedRewardModel,
        pairs: PairData,
        *,
        method: str | None = None,
        seed: int = 0,
        path: str | None = None,
        batch_size: int = 64,
    ):
        self.model, self.pairs, self.batch_size = model.eval(), pairs, batch_size
        self.method, self.seed, self.path = method or model.config.user_model, seed, path
        self.uses_context = model.user_model.uses_context
        # A response is scored for every k and every control: what no user changes is computed once.
        self.head = model.user_model.on_embedded()
        self._known: tuple[np.ndarray, torch.Tensor] | None = None

    @property
    def device(self) -> torch.device:
        return self.model.user_model.feature_mean.device

    def prepare(self, rows: np.ndarray) -> None:
        """Computes what no user changes of these rows once, for all the contexts they will be part of."""
        rows = np.unique(rows[rows >= 0])
        self._known = None  # those of the last rows go before these come
        self._known = (rows, self._embed(self._features(rows)))

    @torch.inference_mode()
    def _features(self, rows: np.ndarray) -> torch.Tensor:
        """(n, 2, d) standardised features."""
        if self.pairs.frozen:
            return self.model.user_model.standardize(torch.from_numpy(self.pairs.features(rows)).to(self.device))
        # Like lengths side by side spare padding; packed rows have none, and like users share what they begin with.
        keys = self.pairs.history.user[rows] if self.pairs.packing else self.pairs.lengths(rows)
        order = np.argsort(keys, kind="stable")
        out = self.model.user_model.feature_mean.new_empty(len(rows), 2, self.model.config.feature_dim)
        for start in range(0, len(rows), self.batch_size):
            at = order[start : start + self.batch_size]
            batch = {name: value.to(self.device) for name, value in self.pairs.targets(rows[at]).items()}
            states = self.model.user_model.standardize(self.pairs.states(self.model, batch))
            out[at] = torch.stack(states.chunk(2), dim=1)
        return out

    @torch.inference_mode()
    def _embed(self, features: torch.Tensor) -> torch.Tensor:
        """(n, 2, e) from (n, 2, d)."""
        return self.model.user_model.embed(features.flatten(0, 1)).unflatten(0, (-1, 2))

    def embedded(self, rows: np.ndarray) -> torch.Tensor:
        """(n, 2, e) of rows (n,), chosen first: what `head` reads in place of features."""
        at = self._position(rows)
        return self._embed(self._features(rows)) if at is None else self._known[1][at]

    def _position(self, rows: np.ndarray) -> torch.Tensor | None:
        """(n,) where these rows are among the prepared; `None` if one is not."""
        if self._known is not None and len(self._known[0]):
            position = np.minimum(np.searchsorted(self._known[0], rows), len(self._known[0]) - 1)
            if (self._known[0][position] == rows).all():
                return torch.from_numpy(position).to(self.device)
        return None

    def encode(self, context: Context):
        """State of one user a row."""
        context_rows, flipped, of_target = distinct_contexts(context.index, context.flipped)
        state = self._state(self.head, self.embedded, context_rows, flipped)
        return state.rows(torch.from_numpy(of_target).to(self.device))

    @torch.inference_mode()
    def _state(self, model: UserModel, lookup: Callable, context_rows: np.ndarray, flipped: np.ndarray) -> UserState:
        index, mask, rows, turned = distinct_pairs(context_rows, flipped)
        features = lookup(rows)
        turned = torch.from_numpy(turned).to(self.device)
        features[turned] = features[turned].flip(1)
        return model.encode(features, torch.from_numpy(index).to(self.device), torch.from_numpy(mask).to(self.device))

    def score(self, rows: np.ndarray, context: Context, predictive: bool = True) -> Scores:
        return self._checked(self._score(rows, self.encode(context), predictive))

    def score_random_state(self, rows: np.ndarray, draw: np.ndarray) -> Scores | None:
        if self._random_users is None:
            return None
        users = torch.from_numpy((draw % np.uint64(_RANDOM_USERS)).astype(np.int64))
        return self._checked(self._score(rows, self._random_users.rows(users.to(self.device)), predictive=False))

    def _checked(self, scores: Scores) -> Scores:
        """The scores, all of them numbers: NaN would count as pairs that the method does not know."""
        wrong = ~(np.isfinite(scores[0]) & np.isfinite(scores[1]))
        if wrong.any():
            raise NumericError(
                f"`{self.method}` (seed {self.seed}, {self.path or 'no folder'}) gives {wrong.sum()} of {len(wrong)} pairs a "
                "margin or probability that is NaN or infinite. Its training has diverged: train it again with a lower "
                "`learning_rate`; where it is read in float16, read it in bfloat16 or float32."
            )
        return scores

    @cached_property
    @torch.inference_mode()
    def _random_users(self) -> UserState | None:
        """A fixed set of random users: a score does not depend on the batch it is computed in."""
        state = self.model.user_model.random_state(_RANDOM_USERS, torch.Generator().manual_seed(0))
        return None if state is None else state.to(self.device)

    @torch.inference_mode()
    def _score(self, rows: np.ndarray, state, predictive: bool) -> Scores:
        chosen, rejected = self.embedded(rows).unbind(1)
        margin = self.head.score(chosen, state).double() - self.head.score(rejected, state).double()
        probability = self.head.probability(chosen, rejected, state).double() if predictive else margin.sigmoid()
        return margin.cpu().numpy(), probability.cpu().numpy()

    def states(self, context: Context) -> np.ndarray | None:
        state = self.encode(context)
        values = state.tensors.get("mean", next(iter(state.tensors.values()))).reshape(len(state), -1)
        return values.float().cpu().numpy() if values.shape[1] else None

    def new_user_ms(self, context: Context, repeats: int = 20) -> float:
        """Median milliseconds to encode one new user from the features of its pairs."""
        one = context.index[:1], context.flipped[:1]
        rows = np.unique(one[0][one[0] >= 0])
        features = self._features(rows)

        def lookup(wanted: np.ndarray) -> torch.Tensor:
            return features[torch.from_numpy(np.searchsorted(rows, wanted)).to(self.device)]

        return median_ms(lambda: self._state(self.model.user_model, lookup, *one), repeats, self.device)


def median_ms(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median milliseconds of a call, a GPU's work included."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1000)


def load_scorers(
    models: Sequence[str | Path | PersonalizedRewardModel],
    splits,
    *,
    names: Sequence[str | None] | None = None,
    batch_size: int = 64,
    device: str | None = None,
    progress: bool = True,
    users=None,
    feature_cache: str | Path | None = None,
    shared: dict[str, PairData] | None = None,
    packing: str | None = None,
    packing_tokens: int = 4096,
) -> list[RewardModelScorer]:
    """Models as scorers over the pairs of `splits`; models with the same encoder share their features.

    Args:
        models: Folders or ids of saved models, or models. Several of one method are its seeds.
        splits: Split name to dataset; their order numbers the rows.
        names: Name of each model's method; its user model's name where None.
        batch_size: Texts in a batch of a backbone.
        device: Device of the models; an accelerator if there is one.
        progress: Show progress of embedding.
        feature_cache: Folder of the feature cache, where it is not the usual one.
        shared: Pairs of these splits from earlier calls, to which new ones are added.
        users: Rows of the `users` config, for the methods that declare that they read it.
        packing: `shared_prefix` reads what texts begin with in common once; for models with a backbone.
        packing_tokens: Tokens in a packed row.

    Raises:
        ConfigError: A folder without a model, one model twice, models under one name whose settings differ, or a split
            of unseen users whom a model was trained on.
    """
    from ..features import FeatureCache
    from ..trainers.text_data import pair_data
    from .backbone_scorer import BackboneScorer
    from .text_scorer import TextScorer

    check_distinct(models)
    sketches = {
        str(item): read_sketch(hub_copy(item, DIGESTS) or item) for item in models if not hasattr(item, "user_model")
    }
    check_unseen({name: known for name, known in sketches.items() if known is not None}, splits)
    if trained_apart(list(sketches.values())) and progress:
        print(
            "note: these models were trained on different choices, which may be what separates them", file=sys.stderr
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    shared = {} if shared is None else shared
    scorers: list[RewardModelScorer] = []
    settings: dict[str, str] = {}
    for number, item in enumerate(models):
        path = None if hasattr(item, "user_model") else str(item)
        model = load_model(path) if path is not None else item
        model = model.to(device)
        method = (names[number] if names else None) or model.config.user_model
        config = json.dumps([model.config.user_model, model.config.user_model_kwargs or {}], sort_keys=True)
        if settings.setdefault(method, config) != config:
            raise ConfigError(
                f"`models`: two models are called {method!r} but have different settings, so they are no seeds of one "
                "method. Evaluate them apart, and compare with `pluralrlhf report`."
            )
        text = model.user_model.route == "text"
        # A text-route model has its own way from contexts to texts, so that it shares nothing.
        key = (not text and _feature_key(model)) or f"backbone {len(shared)}"
        if key not in shared:
            cache = FeatureCache(feature_cache) if feature_cache and model.backbone is None else None
            packed = {} if model.backbone is None else {"packing": packing, "packing_tokens": packing_tokens}
            shared[key] = pair_data(model, cache, progress=progress, users=users, **packed)
            for name, dataset in splits.items():
                shared[key].add(name, dataset)
        scorer = {"text": TextScorer, "backbone": BackboneScorer}.get(model.user_model.route, RewardModelScorer)
        scorers.append(
            scorer(model, shared[key], method=method, seed=_seed_of(path), path=path, batch_size=batch_size)
        )
    _number_equal_seeds(scorers)
    return scorers


def check_distinct(models: Sequence[str | Path | PersonalizedRewardModel]) -> None:
    """Refuses a folder that is named twice: it would count as two seeds."""
    seen: dict[Path, str | Path] = {}
    for model in models:
        if hasattr(model, "user_model"):
            continue
        folder = Path(model).resolve()
        if folder in seen:
            again = "twice" if str(seen[folder]) == str(model) else f"twice, also as {model}"
            raise ConfigError(
                f"`--model`: {seen[folder]} is given {again} (`--baseline` counts). Name each model once; several of one "
                "method are its seeds."
            )
        seen[folder] = model


def load_model(path: str | Path) -> PersonalizedRewardModel:
    """A saved reward model; what is none is a `ConfigError` in one line."""
    from ..modeling import PersonalizedRewardModel

    folder = Path(path)
    if folder.exists() and not ((folder / "config.json").is_file() or (folder / "adapter").is_dir()):
        checkpoints = sorted(folder.glob("checkpoint-*"))
        hint = f" Did you mean {checkpoints[-1]}?" if checkpoints else ""
        raise ConfigError(f"`--model` {folder}: there is no config.json in it, so it is no saved model.{hint}")
    if not folder.exists() and not may_be_on_hub(path):
        raise ConfigError(f"`--model` {folder}: the folder does not exist. Train one with `pluralrlhf train reward`.")
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return PersonalizedRewardModel.from_pretrained(str(path)).eval()
    finally:
        if shown:
            logging.enable_progress_bar()


def _feature_key(model: PersonalizedRewardModel) -> str | None:
    """Models with the same key read the same features or tokens; None for a backbone without a name.

    Backbones of one name share tokens alone: each model reads them with weights of its own.
    """
    config = model.config
    if model.backbone is None:
        return json.dumps([config.encoder, config.encoder_input], sort_keys=True, default=str)
    name = config.backbone_name_or_path
    return json.dumps([name, config.max_length, model.tokenizer.chat_template, len(model.tokenizer)]) if name else None


def _seed_of(path: str | None) -> int:
    """The seed in `training_args.json` beside a saved model, 0 where there is none."""
    try:
        return int(json.loads((Path(path or "") / "training_args.json").read_text(encoding="utf-8"))["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _number_equal_seeds(scorers: Sequence[RewardModelScorer]) -> None:
    """Models of one method that do not say different seeds are numbered in the order given."""
    by_method: dict[str, list[RewardModelScorer]] = {}
    for scorer in scorers:
        by_method.setdefault(scorer.method, []).append(scorer)
    for group in by_method.values():
        if len({scorer.seed for scorer in group}) < len(group):
            for number, scorer in enumerate(group):
                scorer.seed = number
