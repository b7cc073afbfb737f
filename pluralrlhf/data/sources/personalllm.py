"""PersonalLLM: simulated users who weigh ten reward models' scores of eight models' responses.

The users are simulated, the responses and scores are not. A user's weights are drawn from a Dirichlet distribution; of two
responses the user prefers the one with the higher weighted sum of standardised scores.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ...errors import ConfigError
from ..schema import RowError, messages
from ..splits import hash64
from .hub import HubSource, cell, wording

N_RESPONSES = 8
# Reward model -> mean and standard deviation of its scores, as the origin's scripts standardise them.
PUBLISHED_SCALES = {
    "beaver_7b": (6.233516894340515, 3.012641148973965),
    "gemma_2b": (4.3304170169830325, 2.038611338958803),
    "gemma_7b": (1.6259730467796325, 2.6096741570264976),
    "llama3_sfairx": (1.0637639780044557, 2.953017385451928),
    "mistral_raft": (8.309211883544922, 3.0728436748484533),
    "mistral_ray": (3.0136284782886507, 1.6902981149232585),
    "mistral_weqweasdas": (7.071075622558594, 2.578636650248985),
    "oasst_deberta_v3": (2.8976835689097644, 1.7207868789061331),
    "oasst_pythia_1b": (4.293944010734558, 2.3018268820938133),
    "oasst_pythia_7b": (4.706351243972779, 1.3659142113789966),
}
MODELS = tuple(PUBLISHED_SCALES)


@dataclass
class PersonalLLM(HubSource):
    """A pair an interaction: a prompt and two of its responses.

    `published`: as the origin's scripts do: prompts of the training file, drawn with replacement; two of the first seven
    responses (the eighth is never drawn); scores standardised by constants computed from all prompts; equal sums go to
    the second. `strict`: no prompt twice for a user, all eight responses, scores standardised by the prompts of seen
    items only, equal sums make no pair.
    """

    name: ClassVar[str] = "personalllm"
    summary: ClassVar[str] = "PersonalLLM: simulated users with Dirichlet weights on ten reward models' scores"
    example: ClassVar[str] = "--path PersonalLLM --alpha 0.05"
    min_pairs_per_user: ClassVar[int | None] = 2
    repository: ClassVar[str] = "namkoong-lab/PersonalLLM"
    title: ClassVar[str] = "PersonalLLM: users who weigh reward models"
    licence: ClassVar[str] = "CC-BY-4.0"
    attribution: ClassVar[str] = (
        "PersonalLLM, Thomas P. Zollo et al., 'PersonalLLM: Tailoring LLMs to Individual Preferences', ICLR 2025."
    )

    path: str | None = field(
        default=None,
        metadata={"help": "local copy: a folder with data/train-*.parquet and data/test-*.parquet (default: the Hub)"},
    )
    revision: str = field(
        default="main", metadata={"help": "commit or tag of the Hub dataset: pin it to build the same again"}
    )
    construction: Literal["strict", "published"] = field(
        default="strict", metadata={"help": "how prompts and responses are drawn and scores standardised"}
    )
    n_users: int = field(default=1000, metadata={"help": "simulated users"})
    alpha: float = field(
        default=0.01, metadata={"help": "of the Dirichlet distribution: small, and users follow one reward model each"}
    )
    min_interactions: int = field(default=25, metadata={"help": "least number of interactions of a user"})
    max_interactions: int = field(default=49, metadata={"help": "greatest number of interactions of a user"})
    placebo: bool = field(
        default=False, metadata={"help": "each choice is made with the weights of a user drawn anew for it"}
    )
    seed: int = field(default=0, metadata={"help": "of the users, their interactions and the placebo"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_users < 2:
            raise ConfigError(f"`n_users` is {self.n_users}: 2 or more are expected")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"`alpha` is {self.alpha}: a number above 0 is expected")
        if not 1 <= self.min_interactions <= self.max_interactions:
            raise ConfigError(
                f"`min_interactions` is {self.min_interactions} and `max_interactions` {self.max_interactions}: "
                "1 or more is expected, and no more than the other"
            )

    @property
    def weights(self) -> np.ndarray:
        """(n_users, 10) each user's weights, which sum to 1, in the order of `MODELS`."""
        rng = np.random.default_rng(hash64("personalllm users", self.seed))
        # A tiny alpha underflows to 0/0 in gamma draws: drawn in logarithms, log G(a) = log G(a + 1) + log(U) / a.
        size = (self.n_users, len(MODELS))
        logs = np.log(rng.gamma(self.alpha + 1, size=size)) + np.log(1 - rng.random(size)) / self.alpha
        weights = np.exp(logs - logs.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)

    def rows(self) -> Iterator[dict[str, Any] | RowError]:
        """Yields pair rows in the order of the prompts, and of the users who were asked about one."""
        self.dropped.clear()
        strict, files = self.construction == "strict", self._files()
        n_prompts, mean, sd = self._look(files)
        asked = self._interactions(n_prompts)
        weights = self.weights
        number = -1
        for path, row, record in self.records(files):
            number += 1
            try:
                if isinstance(record, RowError):
                    raise record
                prompt, texts, scores = self._read(record, path, row)
            except RowError as error:
                yield error
                continue
            standard = (scores - mean) / sd
            for user, order, a, b in asked.get(number, ()):
                voter = hash64("placebo", self.seed, user, order) % self.n_users if self.placebo else user
                gap = float((standard[a] - standard[b]) @ weights[voter])
                if texts[a].strip() == texts[b].strip():
                    self.dropped["identical_responses"] += 1
                elif strict and abs(gap) < 1e-12:
                    self.dropped["tie"] += 1
                else:
                    winner, loser = (a, b) if gap > 0 else (b, a)
                    yield {
                        "user_id": f"user-{user:05d}",
                        "pair_id": f"user-{user:05d}:{order}",
                        "item_ids": [wording("pl", prompt)],
                        "prompt": messages(prompt, "user"),
                        "chosen": messages(texts[winner]),
                        "rejected": messages(texts[loser]),
                        "_file": str(path),
                        "_row": row,
                    }

    def users(self) -> Iterator[dict[str, Any]]:
        """Each user's weights, for evaluation; no reward model sees them unless it is an oracle."""
        for number, weights in enumerate(self.weights):
            given = {model: round(float(weight), 6) for model, weight in zip(MODELS, weights)}
            yield {"user_id": f"user-{number:05d}", "attributes": {"weights": given}}

    def notes(self) -> str:
        text = f"Users are simulated: {self.n_users:,} with Dirichlet({self.alpha:g}) weights on ten reward models."
        return text + " **Placebo**: each choice is made with the weights of a user drawn anew." * self.placebo

    def _files(self) -> list[Path]:
        parts = ("train", "test") if self.construction == "strict" else ("train",)
        return self.find(*((f"data/{part}-*.parquet", f"{part}.jsonl") for part in parts))

    def _look(self, files: list[Path]) -> tuple[int, np.ndarray, np.ndarray]:
        """The number of prompts, and each reward model's mean and standard deviation."""
        count, n, total, squares = 0, 0, np.zeros(len(MODELS)), np.zeros(len(MODELS))
        shift = np.array([mean for mean, _ in PUBLISHED_SCALES.values()])  # sums of squares stay accurate
        for path, row, record in self.records(files):
            count += 1
            if self.construction == "published" or isinstance(record, RowError):
                continue
            try:
                prompt, _, scores = self._read(record, path, row)
            except RowError:  # reported when the rows are read
                continue
            if self.split is None or not self.split.item_unseen(wording("pl", prompt)):
                n += len(scores)
                total += (scores - shift).sum(0)
                squares += ((scores - shift) ** 2).sum(0)
        if self.construction == "published" or not n:
            scales = np.array(list(PUBLISHED_SCALES.values()))
            return count, scales[:, 0], scales[:, 1]
        mean = total / n
        return count, mean + shift, np.sqrt(np.maximum(squares / n - mean**2, 1e-12))

    def _interactions(self, n_prompts: int) -> dict[int, list[tuple[int, int, int, int]]]:
        """Prompt number -> `(user, interaction, response, response)`; some 200 bytes an interaction in memory."""
        asked: dict[int, list] = defaultdict(list)
        strict = self.construction == "strict"
        n_responses = N_RESPONSES if strict else N_RESPONSES - 1
        for user in range(self.n_users):
            rng = np.random.default_rng(hash64("personalllm interactions", self.seed, user))
            length = int(rng.integers(self.min_interactions, self.max_interactions + 1))
            if strict:
                prompts = rng.choice(n_prompts, size=min(length, n_prompts), replace=False)
            else:
                prompts = rng.integers(0, max(n_prompts, 1), size=length)
            for order, prompt in enumerate(prompts.tolist()):
                a, b = rng.choice(n_responses, size=2, replace=False).tolist()
                asked[prompt].append((user, order, a, b))
        return asked

    def _read(self, record: dict, path: Path, row: int) -> tuple[str, list[str], np.ndarray]:
        """The prompt, its eight responses, and their (8, 10) scores."""
        prompt = cell(record, "prompt", str, path, row)
        numbers = range(1, N_RESPONSES + 1)
        texts = [cell(record, f"response_{i}", str, path, row) for i in numbers]
        scores = np.empty((N_RESPONSES, len(MODELS)))
        for i in numbers:
            for j, model in enumerate(MODELS):
                column = f"response_{i}_{model}"
                score = cell(record, column, (int, float), path, row)
                if not math.isfinite(score):
                    where = {"raw": record, "file": str(path), "row": row, "column": column}
                    raise RowError("bad_score", "a score that is no finite number", "Use --skip_invalid", **where)
                scores[i - 1, j] = score
        return prompt, texts, scores
