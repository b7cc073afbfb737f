"""`plus_frozen_rm`: the summariser learns to write for a reward model that does not learn to read."""

from __future__ import annotations

from .plus import Plus


class PlusFrozenRM(Plus):
    """[`Plus`] whose reward model stays what it was after its warm-up.

    `SummarizerTrainer` with `method="plus_frozen_rm"` trains it.
    """

    name = "plus_frozen_rm"
