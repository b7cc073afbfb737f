"""Generating one turn at a time for a batch of conversations, with a key-value cache that survives between turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError
from ..features.rendering import neutralize_special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ChatFormat:
    """Turns messages into tokens so that a conversation can grow without re-encoding what is there.

    Args:
        tokenizer: Any tokenizer with a chat template whose rendering of a conversation begins with the rendering of
            its beginning. The end of an utterance is the special token that the template puts after its content.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        mark = "y"
        before = self._render([{"role": "user", "content": mark}, {"role": "assistant", "content": mark}])
        tail = before[before.rindex(mark) + 1 :]
        stripped = tail.lstrip()
        ends = [token for token in set(tokenizer.all_special_tokens) if stripped.startswith(token)]
        if not ends:
            raise ConfigError(
                "The tokenizer's chat template puts no special token after an assistant message; turns cannot end."
            )
        end = max(ends, key=len)
        self.end_id = tokenizer.convert_tokens_to_ids(end)
        self.stop_ids = sorted({self.end_id, tokenizer.eos_token_id} - {None})
        self._after_end = stripped[len(end) :]
        self._base = before
        self._user_turns: dict[str, list[int]] = {}

    def _render(self, messages, generation_prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Tokens of the messages and of the beginning of the policy's next utterance."""
        clean = [{**m, "content": neutralize_special_tokens(m["content"], self.tokenizer)} for m in messages]
        return self.tokenizer(self._render(clean, True), add_special_tokens=False)["input_ids"]

    def user_turn_ids(self, text: str) -> list[int]:
        """Tokens from the end of the policy's utterance (without the end token) to the beginning of its next one."""
        if text not in self._user_turns:
            base = [{"role": "user", "content": "y"}, {"role": "assistant", "content": "y"}]
            full = self._render(
                [*base, {"role": "user", "content": neutralize_special_tokens(text, self.tokenizer)}], True
            )
            if not full.startswith(self._base):
                raise ConfigError(
                    "The tokenizer's chat template rewrites earlier messages, so that a conversation cannot grow. "
                    "Use a prefix-preserving template (TRL ships training templates)."
                )
            suffix = self._after_end + full[len(self._base) :]
            if len(self._user_turns) > 20_000:
                self._user_turns.clear()
            self._user_turns[text] = self.tokenizer(suffix, add_special_tokens=False)["input_ids"]
        return self._user_turns[text]

    def text(self, token_ids: Sequence[int]) -> str:
        """An utterance's text."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()


def sample(logits: torch.Tensor, temperature: float, generator: torch.Generator | None):
    """Tokens (B,) and their log-probabilities (B,) at `temperature`; the most probable token at temperature 0."""
    logps = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = logps.argmax(dim=-1)
    else:
        tokens = torch.multinomial(logps.exp(), 1, generator=generator)[:, 0]
    return tokens, logps.gather(1, tokens[:, None])[:, 0]


def pad_left(rows: Sequence[Sequence[int]], value: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L) tokens and their mask, the rows' ends aligned."""
    width = max(map(len, rows))
    ids = torch.tensor([[value] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


class CachedGenerator:
    """Generates turns with a cache that survives from turn to turn.

    Tokens that are not in the cache yet (the last sampled token, the user's answer, the next generation prompt) are
    encoded in one pass with the beginning of the next turn. Rows have different lengths, so the cache has masked
    columns; positions are counted over real tokens only. Rows of finished conversations leave the cache.

    Args:
        model: A causal language model.
        pad_id: Token that fills masked columns.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int):
        self.model, self.pad_id, self.device = model, pad_id, next(model.parameters()).device

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        """Begins a batch of conversations."""
        from transformers import DynamicCache

        self.cache: Any = DynamicCache(config=self.model.config)
        self.pending = [list(prompt) for prompt in prompts]
        self.mask = torch.zeros(len(prompts), 0, dtype=torch.long, device=self.device)
        self.length = torch.zeros(len(prompts), dtype=torch.long, device=self.device)

    def extend(self, keep: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """Keeps the rows `keep` and appends `tokens[i]` to row `keep[i]`."""
        if len(keep) < len(self.pending):
            rows = torch.tensor(list(keep), dtype=torch.long, device=self.device)
            self.cache.batch_select_indices(rows)
            self.mask, self.length = self.mask[rows], self.length[rows]
        self.pending = [self.pending[row] + list(new) for row, new in zip(keep, tokens)]

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.mask = torch.cat([self.mask, mask], dim=1)
        positions = (self.length[:, None] + mask.cumsum(dim=1) - 1).clamp(min=0)
        self.length = self.length + mask.sum(dim=1)
        out = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]

    @torch.no_grad()
    def generate(
        self,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """One utterance a row, up to and including a stop token, and the log-probability of each of its tokens."""
        stop = torch.tensor(list(stop_ids), device=self.device)
        logits = self._forward(*pad_left(self.pending, self.pad_id, self.device))
        alive = torch.ones(len(self.pending), dtype=torch.bool, device=self.device)
        all_tokens, all_logps, all_alive = [], [], []
        for step in range(max_new_tokens):
            tokens, logps = sample(logits, temperature, generator)
            all_tokens.append(tokens)
            all_logps.append(logps)
            all_alive.append(alive)
            alive = alive & ~torch.isin(tokens, stop)
            if step + 1 == max_new_tokens or not alive.any():
                break
            fed = torch.where(alive, tokens, self.pad_id)
            logits = self._forward(fed[:, None], alive[:, None].long())
        lengths = torch.stack(all_alive, dim=1).sum(dim=1).tolist()
        tokens, logps = torch.stack(all_tokens, dim=1).tolist(), torch.stack(all_logps, dim=1).tolist()
        ids = [row[:n] for row, n in zip(tokens, lengths)]
        self.pending = [row[-1:] for row in ids]
        return ids, [row[:n] for row, n in zip(logps, lengths)]


class ReencodingGenerator(CachedGenerator):
    """Encodes the whole conversation anew at every turn: the naive way, for the benchmark and for comparison."""

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        self.contexts = [list(prompt) for prompt in prompts]
        super().start(prompts)

    def extend(self, keep: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        self.contexts = [self.contexts[row] + list(new) for row, new in zip(keep, tokens)]

    def generate(self, max_new_tokens, stop_ids, temperature=1.0, generator=None):
        super().start(self.contexts)
        ids, logps = super().generate(max_new_tokens, stop_ids, temperature, generator)
        self.contexts = [context + new for context, new in zip(self.contexts, ids)]
        return ids, logps


class VLLMGenerator:
    """Generates turns through TRL's vLLM client; the server's prefix cache keeps earlier turns.

    Args:
        vllm_generation: `GRPOTrainer.vllm_generation` of a trainer with `use_vllm=True`; samples with its settings.
    """

    def __init__(self, vllm_generation: Any):
        self.vllm = vllm_generation

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        """Begins a batch of conversations."""
        self.contexts = [list(prompt) for prompt in prompts]

    def extend(self, keep: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """Keeps the rows `keep` and appends `tokens[i]` to row `keep[i]`."""
        self.contexts = [self.contexts[row] + list(new) for row, new in zip(keep, tokens)]

    def generate(self, max_new_tokens, stop_ids, temperature=1.0, generator=None):
        """One utterance a row and its log-probabilities, cut after the first stop token or `max_new_tokens`."""
        _, completions, logprobs, _ = self.vllm.generate(prompts=self.contexts, images=None, num_generations=1)
        ids, logps = [], []
        for tokens, values in zip(completions, logprobs):
            stops = [i + 1 for i, token in enumerate(tokens[:max_new_tokens]) if token in stop_ids]
            n = min([*stops, max_new_tokens, len(tokens)])
            ids.append(list(tokens[:n]))
            logps.append([float(v[0] if isinstance(v, (list, tuple)) else v) for v in values[:n]])
        self.contexts = [context + new for context, new in zip(self.contexts, ids)]
        return ids, logps
