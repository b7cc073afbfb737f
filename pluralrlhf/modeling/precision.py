"""In which precision a reward model computes: its backbone in the caller's, its user model in float32."""

from __future__ import annotations

import torch


def full_precision(device: torch.device) -> torch.autocast:
    """Context in which a user model computes what it is kept in, float32, also where the backbone has half of it.

    A reward in bfloat16 has three digits, of which the difference of two loses most, and a posterior's factorisation
    exists in float32 alone.
    """
    return torch.autocast(device.type, enabled=False)


def present_precision(device: torch.device) -> torch.autocast:
    """Context with the autocast of here and now, to be entered later within `full_precision`."""
    kind = device.type
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))
