"""From texts to features: frozen encoders, pooling, rendering of messages and the on-disk feature cache."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cache import FeatureCache, FeatureTable
    from .encoder_loading import load_encoder
    from .encoders import TextEncoder
    from .pooling import POOLING_MODES, pool
    from .rendering import PART_MODES, encoder_parts, neutralize_special_tokens, render

_HOME = {
    "FeatureCache": "cache",
    "FeatureTable": "cache",
    "POOLING_MODES": "pooling",
    "PART_MODES": "rendering",
    "TextEncoder": "encoders",
    "encoder_parts": "rendering",
    "load_encoder": "encoder_loading",
    "neutralize_special_tokens": "rendering",
    "pool": "pooling",
    "render": "rendering",
}
__all__ = [
    "PART_MODES",
    "POOLING_MODES",
    "FeatureCache",
    "FeatureTable",
    "TextEncoder",
    "encoder_parts",
    "load_encoder",
    "neutralize_special_tokens",
    "pool",
    "render",
]


def __getattr__(name: str):
    """Imported on first use: looking into the cache needs neither torch nor transformers."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
