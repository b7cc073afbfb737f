"""A trained classifier as the user model: bags of words, summed over what was said so far."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...errors import ConfigError
from .calibration import fit_temperature

Transcript = Sequence[dict[str, str]]


@dataclass
class ClassifierBeliefConfig:
    """Settings of `ClassifierBelief`.

    Args:
        n_types: Number of user types U.
        hidden: Width of the hidden layer; 0 makes a linear bag-of-words classifier.
        role: Whose messages are read: `user`, `assistant` or `both`.
        min_count: Words that occur less often in training are unknown.
        steps, batch_size, learning_rate, weight_decay, dropout: AdamW; dropout acts on the summed words.
        seed: Of the weights and the batches.
    """

    n_types: int
    hidden: int = 128
    role: str = "user"
    min_count: int = 2
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    dropout: float = 0.1
    seed: int = 0

    def __post_init__(self):
        if self.role not in ("user", "assistant", "both"):
            raise ConfigError(f"`role` is {self.role!r}; use user, assistant or both.")
        if self.n_types < 2:
            raise ConfigError(f"`n_types` is {self.n_types}; a belief needs at least 2 types.")


def words_by_turn(transcript: Transcript, role: str) -> list[list[str]]:
    """Lower-case words per turn: index 0 before the first assistant message, t after the t-th."""
    out: list[list[str]] = [[]]
    for message in transcript:
        if message["role"] == "assistant":
            out.append([])
        if role in ("both", message["role"]):
            out[-1] += re.findall(r"[^\W_]+|[?!]", message["content"].lower())
    return out


class ClassifierBelief(nn.Module):
    """b_t = softmax(f(sum of the word vectors said up to turn t) / temperature).

    Trained on every prefix of the training conversations at once, so that it is a belief at every turn; the temperature
    is fitted on held-out conversations. One pass gives all turns of all conversations: word vectors are summed per turn,
    and a running sum over turns makes the prefixes.
    """

    def __init__(self, config: ClassifierBeliefConfig, vocabulary: dict[str, int]):
        super().__init__()
        self.config, self.vocabulary, self.n_types = config, vocabulary, config.n_types
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            width = config.hidden or config.n_types
            self.words = nn.Embedding(len(vocabulary), width)
            nn.init.normal_(self.words.weight, std=0.1 if config.hidden else 0.01)
            self.bias = nn.Parameter(torch.zeros(width))
            self.dropout = nn.Dropout(config.dropout)
            if config.hidden:
                self.head = nn.Sequential(
                    nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.n_types)
                )
            else:
                self.head = nn.Identity()
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, counts_index: torch.Tensor, counts_row: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """Logits (N, T + 1, U) of words `counts_index` (W,), word w said at flat (conversation, turn) `counts_row`."""
        n, turns = shape
        width = self.words.embedding_dim
        sums = torch.zeros(n * turns, width, device=self.bias.device)
        sums = sums.index_add(0, counts_row, self.words(counts_index)).view(n, turns, width).cumsum(dim=1)
        return self.head(self.dropout(sums) + self.bias)

    def _inputs(self, transcripts: Sequence[Transcript]):
        split = [words_by_turn(t, self.config.role) for t in transcripts]
        turns = max((len(s) for s in split), default=1)
        pairs = [
            (self.vocabulary[word], n * turns + t)
            for n, s in enumerate(split)
            for t, words in enumerate(s)
            for word in words
            if word in self.vocabulary
        ]
        index, row = torch.tensor(pairs, dtype=torch.long, device=self.bias.device).reshape(-1, 2).T
        lengths = torch.tensor([len(s) for s in split], device=self.bias.device)
        return index, row, (len(split), turns), lengths

    @torch.no_grad()
    def logits(self, transcripts: Sequence[Transcript]) -> np.ndarray:
        """Uncalibrated logits (N, T + 1, U)."""
        self.eval()
        index, row, shape, _ = self._inputs(transcripts)
        return self(index, row, shape).double().cpu().numpy()

    def beliefs(self, transcripts: Sequence[Transcript]) -> np.ndarray:
        """Beliefs (N, T + 1, U); past its end a conversation keeps its last belief."""
        logits = self.logits(transcripts) / self.temperature.item()
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)

    @classmethod
    def fit(
        cls,
        transcripts: Sequence[Transcript],
        types: Sequence[int],
        config: ClassifierBeliefConfig,
        calibration: tuple[Sequence[Transcript], Sequence[int]] | None = None,
    ) -> ClassifierBelief:
        """Trains on labelled conversations; `calibration` conversations (other users) set the temperature."""
        if len(transcripts) != len(types) or not len(transcripts):
            raise ConfigError(f"`transcripts` has {len(transcripts)} conversations and `types` {len(types)} labels.")
        counts = Counter(w for t in transcripts for words in words_by_turn(t, config.role) for w in words)
        kept = sorted(word for word, n in counts.items() if n >= config.min_count)
        model = cls(config, {word: i for i, word in enumerate(kept)})
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
        labels = torch.tensor(list(types))
        rng = np.random.default_rng(config.seed)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model.train()
            for _ in range(config.steps):
                rows = rng.integers(0, len(transcripts), min(config.batch_size, len(transcripts)))
                index, row, shape, lengths = model._inputs([transcripts[i] for i in rows])
                logits = model(index, row, shape)
                present = torch.arange(shape[1]) < lengths[:, None]
                target = labels[rows][:, None].expand(shape)
                loss = nn.functional.cross_entropy(logits[present], target[present])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        model.eval()
        if calibration is not None:
            logits, held_out = model.logits(calibration[0]), np.asarray(calibration[1])
            lengths = model._inputs(calibration[0])[3].numpy()
            present = np.arange(logits.shape[1]) < lengths[:, None]
            flat = np.broadcast_to(held_out[:, None], present.shape)[present]
            model.temperature.fill_(fit_temperature(logits[present], flat))
        return model

    def save(self, folder: str | Path) -> None:
        """Writes `belief.json` and `belief.safetensors`."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "belief.safetensors")
        about = {"schema": 1, "config": asdict(self.config), "vocabulary": list(self.vocabulary)}
        (folder / "belief.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> ClassifierBelief:
        """Reads what `save` wrote."""
        from safetensors.torch import load_file

        folder = Path(folder)
        if not (folder / "belief.json").is_file():
            raise ConfigError(f"`{folder}` holds no belief.json; pass a folder written by ClassifierBelief.save.")
        about = json.loads((folder / "belief.json").read_text(encoding="utf-8"))
        config = ClassifierBeliefConfig(**about["config"])
        model = cls(config, {word: i for i, word in enumerate(about["vocabulary"])})
        model.load_state_dict(load_file(folder / "belief.safetensors"))
        return model.eval()
