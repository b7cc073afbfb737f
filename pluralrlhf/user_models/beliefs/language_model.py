"""A language model as the user model: logits over descriptions of the types (Wan et al. 2025, arXiv 2504.03206)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError
from ...features.rendering import neutralize_special_tokens
from ...features.tokenization import padding_id
from .calibration import fit_temperature
from .exact import normalise

Transcript = Sequence[dict[str, str]]


class LanguageModelBelief:
    """b_t(u) proportional to p(description of u | the conversation up to turn t) ^ (1 / temperature).

    Each prefix is encoded once; its key-value cache is then shared by the descriptions, which are scored in one batch.
    The model may be frozen, or fine-tuned on labelled conversations with `fine_tune`.

    Args:
        model: A causal language model.
        tokenizer: With a chat template.
        descriptions: What the assistant would say of each type, (U,) texts.
        question: Asked by the user before the description; None scores the description as the assistant's next message.
        normalise_length: Whether a description's log-probability is divided by its number of tokens.
        batch_size: Prefixes encoded at once.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        descriptions: Sequence[str],
        *,
        question: str | None = None,
        normalise_length: bool = False,
        batch_size: int = 64,
    ):
        if len(descriptions) < 2 or len(set(descriptions)) < len(descriptions):
            raise ConfigError("`descriptions` must be two or more different texts, one a type.")
        self.model, self.tokenizer, self.descriptions = model, tokenizer, list(descriptions)
        self.question, self.normalise_length, self.batch_size = question, normalise_length, batch_size
        self.n_types = len(descriptions)
        self.temperature = 1.0
        self._candidates = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in descriptions]

    def _prefixes(self, transcripts: Sequence[Transcript]) -> tuple[list[list[int]], list[tuple[int, int]]]:
        """Tokens before a description, for every prefix; and its (conversation, turn)."""
        ids, where = [], []
        for n, transcript in enumerate(transcripts):
            # A user who writes a special token's string must not end a message with it.
            messages = [
                {"role": m["role"], "content": neutralize_special_tokens(m["content"], self.tokenizer)}
                for m in transcript
            ]
            starts = [i for i, m in enumerate(messages) if m["role"] == "assistant"] + [len(messages)]
            for t, end in enumerate(starts):
                # A transcript that the assistant opens has an empty first prefix, which templates refuse.
                said = messages[:end] or [{"role": "user", "content": ""}]
                if self.question is not None:
                    said = [*said, {"role": "user", "content": self.question}]
                text = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
                ids.append(self.tokenizer(text, add_special_tokens=False)["input_ids"])
                where.append((n, t))
        return ids, where

    @torch.no_grad()
    def scores(self, prefixes: Sequence[Sequence[int]]) -> np.ndarray:
        """log p(description | prefix), (rows, U)."""
        from transformers import DynamicCache

        self.model.eval()
        device = next(self.model.parameters()).device
        pad = padding_id(self.tokenizer)
        longest = max(map(len, self._candidates))
        # The last token of the prefix is fed with the descriptions: its logits score their first tokens.
        words = torch.tensor([c + [pad] * (longest - len(c)) for c in self._candidates], device=device)
        real = torch.tensor([[1.0] * len(c) + [0.0] * (longest - len(c)) for c in self._candidates], device=device)
        out = []
        for start in range(0, len(prefixes), self.batch_size):
            rows = [list(p) for p in prefixes[start : start + self.batch_size]]
            width = max(map(len, rows))
            ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=device)
            mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            cache: Any = DynamicCache(config=self.model.config)
            self.model(
                input_ids=ids[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=positions[:, :-1],
                past_key_values=cache,
                logits_to_keep=1,
            )
            cache.batch_repeat_interleave(self.n_types)
            last = ids[:, -1:].repeat_interleave(self.n_types, dim=0)
            step = torch.cat([last, words.repeat(len(rows), 1)], dim=1)[:, :-1]
            seen = mask.repeat_interleave(self.n_types, dim=0)
            seen = torch.cat([seen, torch.ones_like(step[:, 1:])], dim=1)
            base = positions[:, -1].repeat_interleave(self.n_types)[:, None]
            logits = self.model(
                input_ids=step,
                attention_mask=seen,
                position_ids=base + torch.arange(step.size(1), device=device),
                past_key_values=cache,
            ).logits
            logps = torch.log_softmax(logits.float(), dim=-1)
            logps = logps.gather(2, words.repeat(len(rows), 1)[..., None])[..., 0]
            scores = (logps * real.repeat(len(rows), 1)).sum(dim=1).view(len(rows), self.n_types)
            if self.normalise_length:
                scores = scores / real.sum(dim=1)
            out.append(scores.double().cpu().numpy())
        return np.concatenate(out)

    def beliefs(self, transcripts: Sequence[Transcript]) -> np.ndarray:
        """Beliefs (N, T + 1, U); past its end a conversation keeps its last belief."""
        prefixes, where = self._prefixes(transcripts)
        rows = normalise(self.scores(prefixes) / self.temperature)
        out = np.zeros((len(transcripts), max(t for _, t in where) + 1, self.n_types))
        for (n, t), row in zip(where, rows):
            out[n, t:] = row
        return out

    def calibrate(self, transcripts: Sequence[Transcript], types: Sequence[int]) -> float:
        """Sets the temperature that gives held-out `types` the highest likelihood at every turn; returns it."""
        prefixes, where = self._prefixes(transcripts)
        self.temperature = fit_temperature(self.scores(prefixes), np.array([types[n] for n, _ in where]))
        return self.temperature

    def fine_tune(
        self,
        transcripts: Sequence[Transcript],
        types: Sequence[int],
        *,
        steps: int = 200,
        batch_size: int = 16,
        learning_rate: float = 1e-4,
        seed: int = 0,
    ) -> list[float]:
        """Trains the model on the true descriptions given every prefix; returns the loss of each step."""
        prefixes, where = self._prefixes(transcripts)
        rng, pad = np.random.default_rng(seed), padding_id(self.tokenizer)
        device = next(self.model.parameters()).device
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate)
        losses = []
        self.model.train()
        for _ in range(steps):
            rows = rng.integers(0, len(prefixes), batch_size)
            pairs = [(prefixes[i], self._candidates[types[where[i][0]]]) for i in rows]
            width = max(len(p) + len(c) for p, c in pairs)
            ids = torch.tensor([[*p, *c] + [pad] * (width - len(p) - len(c)) for p, c in pairs])
            mask = torch.tensor([[1] * (len(p) + len(c)) + [0] * (width - len(p) - len(c)) for p, c in pairs])
            labels = torch.tensor([[-100] * len(p) + c + [-100] * (width - len(p) - len(c)) for p, c in pairs])
            out = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), labels=labels.to(device))
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            losses.append(out.loss.item())
        self.model.eval()
        return losses
