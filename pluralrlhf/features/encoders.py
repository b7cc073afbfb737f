"""Frozen text encoders over models in memory: sentence-transformers models, and anything that `AutoModel` gives."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, DataError
from .inspection import default_pooling, default_prompt, fingerprint, has_transformer, position_limit
from .pooling import POOLING_MODES, pool

logger = logging.getLogger(__name__)

# A batch holds at most `batch_size` texts and this many tokens for each of them, so that long texts do not exhaust
# the memory that short ones leave free.
_TOKENS_PER_TEXT = 512
_TOKENIZE_BLOCK = 256


class TextEncoder:
    """A frozen encoder of texts: `encode(texts)` gives one float32 vector a text.

    A vector depends on its text alone and not on the texts encoded with it: up to about 1e-6 in float32 on the CPU,
    where the order of additions varies with a batch's shape, and up to the dtype's own rounding in bfloat16 or
    float16. Make one with [`load_encoder`], or from a model in memory with [`TextEncoder.from_model`].

    Attributes:
        name: What it was loaded as; it plays no part in the fingerprint.
        dim: d, the length of a vector.
        pooling: `last`, `mean` or `cls`; `sentence-transformers` where the model brings its own.
        max_length: Tokens of a text that are read, special ones included; None where there is no limit.
        revision: Version on the Hub that was asked for, if any.
        truncated: How many of the texts encoded so far were longer than that.
        tokenizer: The model's tokenizer.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        *,
        name: str,
        pooling: str,
        max_length: int | None,
        batch_size: int,
    ):
        if batch_size < 1:
            raise ConfigError(f"`batch_size`: found {batch_size}. Give at least 1.")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name, self.pooling, self.max_length, self.batch_size = name, pooling, max_length, batch_size
        self.revision: str | None = None
        self.truncated = 0
        self._fingerprint: str | None = None
        if pooling == "sentence-transformers":
            self.dim = int(self._forward_sentences(["."]).shape[1])
        else:
            self.dim = int(model.config.get_text_config().hidden_size)

    @classmethod
    def from_model(
        cls,
        model: torch.nn.Module,
        tokenizer: Any = None,
        *,
        pooling: str | None = None,
        max_length: int | None = None,
        batch_size: int = 64,
        name: str = "in-memory model",
    ) -> TextEncoder:
        """Encodes with a model in memory, which is put into evaluation mode and frozen: pass a copy of one in training.

        Args:
            model: A backbone without a head (what `AutoModel` gives), or a `SentenceTransformer`.
            tokenizer: Its tokenizer; it is copied and never changed. Not needed for a `SentenceTransformer`.
            pooling: `last`, `mean` or `cls`. Default: `last` for decoders, `mean` for encoders. A
                `SentenceTransformer` has its own and takes none.
            max_length: Tokens read of a text. Default: the model's limit. With `last` a longer text keeps its end
                (its last token is what is read), otherwise its beginning.
            batch_size: Texts in a batch at most; fewer where they are long.

        Raises:
            ConfigError: if `pooling` or `max_length` do not fit the model.
        """
        if max_length is not None and max_length < 1:
            raise ConfigError(f"`max_length`: found {max_length}. Give at least 1, or leave it out.")
        if hasattr(model, "max_seq_length"):
            if pooling is not None:
                raise ConfigError(
                    f"`pooling`: found {pooling!r}, but {name!r} is a sentence-transformers model, which brings its own "
                    "pooling. Leave `pooling` out."
                )
            limit = position_limit(model.transformers_model, model.tokenizer) if has_transformer(model) else None
            _check_max_length(max_length, limit, name)
            if max_length is not None:
                model.max_seq_length = max_length
            max_length = model.max_seq_length
            max_length = None if max_length is None or max_length == float("inf") else int(max_length)
            pooling, tokenizer = "sentence-transformers", model.tokenizer
        else:
            pooling = pooling or default_pooling(model.config, name)
            if pooling not in POOLING_MODES:
                raise ConfigError(f"`pooling`: found {pooling!r}. Choose one of {', '.join(POOLING_MODES)}.")
            if tokenizer is None:
                raise ConfigError(f"`tokenizer`: none was given for {name!r}. Pass the model's tokenizer.")
            limit = position_limit(model, tokenizer)
            _check_max_length(max_length, limit, name)
            max_length = max_length or limit
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.truncation_side = "left" if pooling == "last" else "right"
        return cls(model, tokenizer, name=name, pooling=pooling, max_length=max_length, batch_size=batch_size)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> TextEncoder:
        """Moves the model; returns the encoder."""
        self.model.to(device)
        return self

    @property
    def fingerprint(self) -> str:
        """32 hex digits: a hash over weights, configuration, tokenizer, pooling and length limit.

        Two encoders with the same fingerprint give a text the same vector; where the weights came from and what they
        are called does not matter. Computed once, on first use.
        """
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self)
        return self._fingerprint

    def spec(self) -> dict[str, Any]:
        """What [`load_encoder`] needs to load it again, and the fingerprint that it must then have.

        Without the leave to run a model's own code, which whoever loads it gives anew.
        """
        own = self.pooling == "sentence-transformers"
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        return {
            "name": self.name,
            "pooling": None if own else self.pooling,
            "max_length": self.max_length,
            "fingerprint": self.fingerprint,
            **({} if dtype == torch.float32 else {"dtype": str(dtype).removeprefix("torch.")}),
            **({} if self.revision is None else {"revision": self.revision}),
        }

    @torch.no_grad()  # not `inference_mode`: a head trained on the vectors must be able to save them
    def encode_ids(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, d) float32 vectors of token sequences (B, L) made with `tokenizer`.

        Raises:
            ConfigError: for a model over static word vectors, which has no token sequences.
        """
        inputs = {"input_ids": input_ids.to(self.device), "attention_mask": attention_mask.to(self.device)}
        if self.pooling != "sentence-transformers":
            hidden = self.model(**inputs).last_hidden_state
            return pool(hidden, inputs["attention_mask"], self.pooling).float()
        if not has_transformer(self.model):
            raise ConfigError(f"{self.name!r} reads texts, not token ids: use `encode`.")
        return self.model(inputs)["sentence_embedding"].float()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes texts; one longer than `max_length` tokens is cut, counted in `truncated` and reported in the log.

        Args:
            texts: n strings.

        Returns:
            (n, dim) float32.

        Raises:
            DataError: for a text that is not a string or in which the tokenizer finds no token.
        """
        vectors, truncated = self.encode_with_flags(texts)
        if truncated.any():
            logger.warning(
                "%s: %d of %d texts were longer than %d tokens and were cut",
                self.name,
                truncated.sum(),
                len(truncated),
                self.max_length,
            )
        return vectors

    def encode_with_flags(
        self, texts: Sequence[str], on_batch: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like [`encode`], with a (n,) bool array that says which texts were cut, and no line in the log.

        `on_batch(m)` is called after each batch of m texts.
        """
        texts = list(texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(
                    f"text {i} is a {type(text).__name__}", "Only strings can be encoded; render messages."
                )
        tokens, lengths, truncated = self._tokenize(texts)
        self.truncated += int(truncated.sum())
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for rows in self._batches(lengths):
            if tokens is None:
                vectors[rows] = self._forward_sentences([texts[row] for row in rows])
            else:
                vectors[rows] = self._forward_tokens([tokens[row] for row in rows])
            if on_batch is not None:
                on_batch(len(rows))
        return vectors, truncated

    def _tokenize(self, texts: list[str]) -> tuple[list[np.ndarray] | None, np.ndarray, np.ndarray]:
        """Token ids (None where the model tokenises itself), lengths within the limit, and which texts exceed it."""
        own = self.pooling == "sentence-transformers"
        if own and not hasattr(self.tokenizer, "added_tokens_decoder"):
            # Models over static word vectors: no limit, and characters do to sort by.
            return None, np.array([len(text) for text in texts], dtype=np.int64), np.zeros(len(texts), dtype=bool)
        tokens: list[np.ndarray] = []
        lengths = np.empty(len(texts), dtype=np.int64)
        prefix = default_prompt(self.model) if own else ""
        for start in range(0, len(texts), _TOKENIZE_BLOCK):
            block = [prefix + text for text in texts[start : start + _TOKENIZE_BLOCK]]
            for i, ids in enumerate(self._token_ids(block)):
                lengths[start + i] = len(ids)
                if not own:
                    if not ids:
                        raise DataError(f"text {start + i} has no tokens", "Drop empty texts before encoding.")
                    if self.max_length and len(ids) > self.max_length:
                        ids = self._token_ids([block[i]], truncation=True, max_length=self.max_length)[0]
                    tokens.append(np.asarray(ids, dtype=np.int64))
        truncated = lengths > (self.max_length or np.iinfo(np.int64).max)
        return (None if own else tokens), np.minimum(lengths, self.max_length or lengths.max(initial=1)), truncated

    def _token_ids(self, texts: list[str], **kwargs: Any) -> list[list[int]]:
        return self.tokenizer(texts, return_attention_mask=False, verbose=False, **kwargs)["input_ids"]

    def _batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Row numbers of each batch, longest texts first, so that a lack of memory shows at once."""
        order = np.argsort(-lengths, kind="stable")
        batches, start = [], 0
        while start < len(order):
            longest = max(int(lengths[order[start]]), 1)
            size = max(1, min(self.batch_size, self.batch_size * _TOKENS_PER_TEXT // longest))
            batches.append(order[start : start + size])
            start += size
        return batches

    @torch.inference_mode()
    def _forward_tokens(self, tokens: list[np.ndarray]) -> np.ndarray:
        width = max(len(ids) for ids in tokens)
        pad = self.tokenizer.pad_token_id
        input_ids = np.full((len(tokens), width), 0 if pad is None else pad, dtype=np.int64)
        mask = np.zeros((len(tokens), width), dtype=np.int64)
        for row, ids in enumerate(tokens):
            input_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        attention_mask = torch.from_numpy(mask).to(self.device)
        kwargs = {"use_cache": False} if self.pooling == "last" else {}
        hidden = self.model(
            input_ids=torch.from_numpy(input_ids).to(self.device), attention_mask=attention_mask, **kwargs
        ).last_hidden_state
        return pool(hidden, attention_mask, self.pooling).float().cpu().numpy()

    def _forward_sentences(self, texts: list[str]) -> np.ndarray:
        vectors = self.model.encode(
            texts, batch_size=len(texts), show_progress_bar=False, convert_to_tensor=True, convert_to_numpy=False
        )
        return vectors.float().cpu().numpy()


def _check_max_length(max_length: int | None, limit: int | None, name: str) -> None:
    if max_length is not None and limit is not None and max_length > limit:
        raise ConfigError(
            f"`max_length`: found {max_length}, but {name!r} reads {limit} tokens. Give at most {limit}."
        )
