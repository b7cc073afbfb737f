"""`plus_untrained`: the initial summariser, the reward model trained on what it writes."""

from __future__ import annotations

from .plus import Plus


class PlusUntrained(Plus):
    """[`Plus`] whose summariser never learned: what the reward model alone makes of first summaries.

    `SummarizerTrainer` with `method="plus_untrained"` trains it.
    """

    name = "plus_untrained"
