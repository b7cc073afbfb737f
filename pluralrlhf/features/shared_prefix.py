"""One packed sequence for token sequences that begin alike: what they share is computed once.

Chosen and rejected share their prompt, and the pairs of a user share the user's text. The sequences of a group form a
prefix tree, laid out in one row: [user text][prompt 1][chosen 1][rejected 1][prompt 2]... A token's position is its
depth in the tree, so that positions restart at each branch; it attends to its ancestors alone. The hidden state at
a sequence's last token is then the one it has on its own, and so are the gradients, in exact arithmetic.

In depth-first order the mask is one number a token: token k is seen by the tokens q with k <= q < visible_until[k].
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PretrainedConfig, PreTrainedModel

# FlexAttention works in blocks of this many tokens.
_BLOCK = 128


@dataclass
class PackedTrees:
    """Prefix trees of token sequences, packed into B rows of T tokens; padding is at the end of a row.

    Attributes:
        input_ids: (B, T) int64.
        position_ids: (B, T) int64, a token's depth in its tree; 0 for padding.
        visible_until: (B, T) int64, the first place after k whose token does not see token k.
        row: (n,) int64, the row in which sequence i ends, in the order in which sequences were given.
        token: (n,) int64, the place in that row of its last token.
        n_tokens: Tokens in the trees, padding not counted.
        n_naive_tokens: Tokens in the sequences one by one.
    """

    input_ids: Tensor
    position_ids: Tensor
    visible_until: Tensor
    row: Tensor
    token: Tensor
    n_tokens: int = 0
    n_naive_tokens: int = 0

    def to(self, device: str | torch.device) -> PackedTrees:
        """The same on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return PackedTrees(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()})

    def mask(self) -> Tensor:
        """(B, 1, T, T) bool, True where query q (third) may attend to key k (last)."""
        place = torch.arange(self.input_ids.size(1), device=self.input_ids.device)
        later = place[:, None] >= place[None, :]
        return (later & (place[None, :, None] < self.visible_until[:, None, :]))[:, None]

    def additive_mask(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, 1, T, T) of `dtype`: 0 where a query may attend to a key, the dtype's lowest number elsewhere."""
        zeros = torch.zeros((), dtype=dtype, device=self.input_ids.device)
        return torch.where(self.mask(), zeros, torch.finfo(dtype).min)

    def block_mask(self) -> BlockMask:
        """The mask for FlexAttention, which never makes it dense."""
        from torch.nn.attention.flex_attention import create_block_mask

        until = self.visible_until

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (query < until[batch, key])

        n_rows, width = self.input_ids.shape
        return create_block_mask(visible, n_rows, None, width, width, device=self.input_ids.device)


def pack_shared_prefix(
    groups: Sequence[Sequence[Sequence[int]]],
    *,
    max_tokens: int | None = None,
    pad_token_id: int = 0,
    pad_to_multiple_of: int = 1,
) -> PackedTrees:
    """Packs groups of token sequences, each group as a prefix tree.

    Sharing is found in the token ids, so the result equals the naive way whatever the tokenizer does at the borders of
    user text, prompt and response.

    Args:
        groups: For each group, usually a user, its token sequences (chosen and rejected of each pair, say). Only the
            sequences of one group share tokens.
        max_tokens: Tokens in a row at most. A group that needs more is split, and what it shares is repeated; several
            small ones share a row. Default: one row for each group.
        pad_token_id: What fills a row up; never attended to.
        pad_to_multiple_of: Rounds the rows' length up (128 spares FlexAttention recompilations).

    Returns:
        The packed trees; sequences are numbered through all groups in the order given.

    Raises:
        DataError: for an empty sequence, or one longer than `max_tokens`.
    """
    trees: list[_Tree] = []
    number = n_naive = 0
    for group in groups:
        keyed: list[tuple[bytes, int, np.ndarray]] = []
        for sequence in group:
            tokens = np.asarray(sequence, dtype=np.int64)
            if not len(tokens):
                raise DataError(f"sequence {number} has no tokens", "Drop empty texts before packing.")
            if max_tokens is not None and len(tokens) > max_tokens:
                raise DataError(
                    f"sequence {number} has {len(tokens)} tokens, but a row holds `max_tokens` = {max_tokens}",
                    "Raise `max_tokens`, or truncate texts to fewer tokens.",
                )
            keyed.append((sort_key(tokens), number, tokens))
            number += 1
            n_naive += len(tokens)
        # In sorted order what sequences share lies side by side, so that a split repeats as little as it can.
        keyed.sort(key=lambda item: item[:2])
        part: list[tuple[int, np.ndarray]] = []
        size, previous = 0, np.empty(0, dtype=np.int64)
        for _, place, tokens in keyed:
            new = len(tokens) - _common_prefix(previous, tokens)
            if max_tokens is not None and size + new > max_tokens:
                trees.append(_Tree(part))
                part, size, new = [], 0, len(tokens)
            part.append((place, tokens))
            size += new
            previous = tokens
        if part:
            trees.append(_Tree(part))
    return _lay_out(trees, number, n_naive, max_tokens, pad_token_id, pad_to_multiple_of)


def sort_key(tokens: np.ndarray) -> bytes:
    """Bytes that sort like the ids: sequences that begin alike come to lie side by side."""
    return tokens.astype(">u4").tobytes()


def pack_by_owner(
    sequences: Sequence[Sequence[int]], owner: Sequence[int], *, max_tokens: int | None = None, **options: int
) -> PackedTrees:
    """[`pack_shared_prefix`] for sequences in any order.

    Args:
        sequences: Token sequences.
        owner: Whose each sequence is; those of one owner share tokens.
        max_tokens: As for `pack_shared_prefix`, but a sequence that is longer gets a row of its length.
        options: As for `pack_shared_prefix`.

    Returns:
        The packed trees, numbered in the order of `sequences`.
    """
    owner = np.asarray(owner)
    order = np.argsort(owner, kind="stable")
    cuts = np.flatnonzero(np.diff(owner[order])) + 1
    groups = [[sequences[i] for i in members] for members in np.split(order, cuts)]
    if max_tokens is not None:
        max_tokens = max(max_tokens, max(map(len, sequences), default=0))
    packed = pack_shared_prefix(groups, max_tokens=max_tokens, **options)
    back = torch.from_numpy(np.argsort(order, kind="stable"))
    return replace(packed, row=packed.row[back], token=packed.token[back])


class _Tree:
    """A prefix tree of sorted sequences in depth-first order: ids, depths, where each token's subtree ends, and each
    sequence's last place."""

    def __init__(self, sequences: list[tuple[int, np.ndarray]]):
        ids: list[np.ndarray] = []
        depths: list[np.ndarray] = []
        self.last: list[tuple[int, int]] = []
        longest = max(len(tokens) for _, tokens in sequences)
        until = np.zeros(sum(len(tokens) for _, tokens in sequences), dtype=np.int64)
        path = np.empty(longest, dtype=np.int64)  # places of the current sequence's tokens
        previous, size = np.empty(0, dtype=np.int64), 0
        for number, tokens in sequences:
            shared = _common_prefix(previous, tokens)
            until[path[shared : len(previous)]] = size  # the subtrees that end here
            new = len(tokens) - shared
            path[shared : len(tokens)] = size + np.arange(new)
            ids.append(tokens[shared:])
            depths.append(np.arange(shared, len(tokens)))
            size += new
            self.last.append((number, int(path[len(tokens) - 1])))
            previous = tokens
        until[path[: len(previous)]] = size
        self.ids, self.depths, self.until = np.concatenate(ids), np.concatenate(depths), until[:size]

    def __len__(self) -> int:
        return len(self.ids)


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def _lay_out(
    trees: list[_Tree], n: int, n_naive: int, max_tokens: int | None, pad_token_id: int, multiple: int
) -> PackedTrees:
    rows: list[list[_Tree]] = []
    room: list[int] = []
    # Without a budget each tree has its row; with one, the largest first into the first row that has room.
    order = range(len(trees)) if max_tokens is None else sorted(range(len(trees)), key=lambda i: -len(trees[i]))
    for i in order:
        tree = trees[i]
        place = next((r for r, left in enumerate(room) if left >= len(tree)), None)
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(max_tokens or len(tree))
        rows[place].append(tree)
        room[place] -= len(tree)
    width = max((sum(map(len, row)) for row in rows), default=0)
    width = -(-width // multiple) * multiple
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    # A padding token sees itself, so that no row of the softmax is empty.
    until = np.tile(np.arange(1, width + 1), (len(rows), 1))
    row_of, token_of = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    for r, row in enumerate(rows):
        start = 0
        for tree in row:
            where = slice(start, start + len(tree))
            ids[r, where], positions[r, where], until[r, where] = tree.ids, tree.depths, start + tree.until
            for number, place in tree.last:
                row_of[number], token_of[number] = r, start + place
            start += len(tree)
    tensors = (torch.from_numpy(array) for array in (ids, positions, until, row_of, token_of))
    return PackedTrees(*tensors, n_tokens=sum(map(len, trees)), n_naive_tokens=n_naive)


def last_hidden_states(backbone: PreTrainedModel, packed: PackedTrees) -> Tensor:
    """Hidden state at the last token of each packed sequence.

    Args:
        backbone: A decoder without a head, with `sdpa`, `eager` or `flex_attention` as its attention.
        packed: From [`pack_shared_prefix`].

    Returns:
        (n, d), in the order in which the sequences were given; differentiable.

    Raises:
        ConfigError: if the architecture cannot take a tree; see [`check_shared_prefix`].
    """
    check_shared_prefix(backbone.config)
    packed = packed.to(backbone.device)
    attention = backbone.config._attn_implementation
    if attention == "flex_attention":
        mask = packed.block_mask()
    else:
        mask = packed.mask() if attention == "sdpa" else packed.additive_mask(backbone.dtype)
    hidden = backbone(
        input_ids=packed.input_ids, position_ids=packed.position_ids, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return hidden[packed.row, packed.token]


def sequence_rewards(model: PreTrainedModel, packed: PackedTrees) -> Tensor:
    """Rewards of packed sequences under a sequence classifier, (n,) for one label and (n, labels) for more.

    Args:
        model: What `AutoModelForSequenceClassification` gives for a decoder, with or without PEFT.
        packed: From [`pack_shared_prefix`].

    Raises:
        ConfigError: if the model has no `score` head, or its architecture cannot take a tree.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone = getattr(base, base.base_model_prefix, None)
    if backbone is None or not hasattr(base, "score"):
        raise ConfigError(
            f"`packing: shared_prefix` needs a decoder with a `score` head, but {type(base).__name__} has none. Use "
            "`AutoModelForSequenceClassification` of a decoder, or leave `packing` out."
        )
    return base.score(last_hidden_states(backbone, packed)).squeeze(-1)


def check_shared_prefix(config: PretrainedConfig) -> None:
    """Refuses what cannot compute a tree in one sequence.

    A tree needs causal attention over all earlier tokens under a mask of ours: no bidirectional encoder, no
    encoder-decoder, no sliding or chunked window and no recurrent or linear layer (their state runs along the row, not
    along a branch), no bias by distance in the row (ALiBi), no attention kernel that ignores masks.

    Raises:
        ConfigError: which says what stands in the way.
    """
    reason = _obstacle(config)
    if reason:
        raise ConfigError(
            f"`packing: shared_prefix`: {config.model_type} {reason}. Use a decoder with full attention (Qwen2, Qwen3, "
            "Llama, Gemma ...) with `attn_implementation` `sdpa` or `flex_attention`, or leave `packing` out."
        )


def _obstacle(config: PretrainedConfig) -> str | None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        return "is an encoder-decoder"
    text = config.get_text_config()
    if type(text) in MODEL_FOR_MASKED_LM_MAPPING or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "is no decoder"
    if getattr(text, "use_bidirectional_attention", False):
        return "attends to later tokens"
    other = sorted({kind for kind in getattr(text, "layer_types", None) or [] if kind != "full_attention"})
    if other:
        return f"has layers without full attention ({', '.join(other)})"
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return f"attends through a window of {text.sliding_window} tokens"
    # Position biases and states that follow the row: such models take no `position_ids` to say otherwise.
    model_class = _backbone_class(text)
    if model_class is None or "position_ids" not in inspect.signature(model_class.forward).parameters:
        return "does not take positions from the caller"
    if getattr(text, "alibi", False):
        return "biases attention by distance (ALiBi)"
    if config._attn_implementation not in ("sdpa", "eager", "flex_attention"):
        return f"runs with `attn_implementation` {config._attn_implementation}, which takes no mask of ours"
    return None


def _backbone_class(config: PretrainedConfig) -> type | None:
    from transformers import MODEL_MAPPING

    found = MODEL_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, list | tuple) else found


def verify_shared_prefix(backbone: PreTrainedModel, tolerance: float = 1e-3) -> None:
    """Compares a small tree of random tokens with its sequences one by one, on the model itself.

    The configuration cannot tell everything (remote code, for instance); this can, at the cost of a few dozen tokens.

    Args:
        backbone: A decoder without a head; its mode is restored.
        tolerance: Largest difference, as a share of the largest hidden value; widen it for 16-bit weights.

    Raises:
        ConfigError: if the architecture is refused or the hidden states differ.
    """
    check_shared_prefix(backbone.config)
    draw = np.random.default_rng(0).integers(1, backbone.config.get_text_config().vocab_size, size=(5, 7)).tolist()
    user, first, second, chosen, rejected = draw
    sequences = [user + first + chosen, user + first + rejected, user + second + chosen[:3], user + second]
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            together = last_hidden_states(backbone, pack_shared_prefix([sequences], pad_to_multiple_of=_BLOCK))
            alone = torch.cat(
                [
                    backbone(torch.tensor([ids], device=backbone.device), use_cache=False).last_hidden_state[:, -1]
                    for ids in sequences
                ]
            )
    finally:
        backbone.train(training)
    difference = ((together - alone).abs().max() / alone.abs().max().clamp(min=1e-12)).item()
    if not difference <= tolerance:
        raise ConfigError(
            f"`packing: shared_prefix`: {backbone.config.model_type} computes a tree and its sequences one by one "
            f"differently (by {difference:.2g} of the largest value, {tolerance:g} is allowed). Leave `packing` out."
        )
