"""CaSiNo: recorded negotiations whose parties hide how they rank food, water and firewood.

Chawla et al. 2021; CC BY 4.0, https://github.com/kushalchawla/CaSiNo. Two campers share three packages each of food,
water and firewood; each has a hidden order of importance (6 types). A belief reads what a party says and guesses the
party's order: real human talk with a known hidden type. Everything but that party's sentences is removed: the other
party's words, `Submit-Deal` and the other button presses, and the task data (who gets what).
"""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError

ITEMS = ("Food", "Water", "Firewood")
TYPES = tuple(itertools.permutations(range(3)))  # indices into ITEMS, most to least important
ITEM_WORDS = {
    "Food": (r"foods?",),
    "Water": (r"waters?",),
    "Firewood": (r"fire[\s-]?woods?", r"woods?"),
}
BUTTONS = frozenset({"Submit-Deal", "Accept-Deal", "Reject-Deal", "Walk-Away"})


@dataclass(frozen=True)
class Negotiator:
    """One party of a dialogue: its sentences in order and its type (an index into `TYPES`)."""

    dialogue_id: str
    party: str
    type_index: int
    sentences: tuple[str, ...]

    @property
    def transcript(self) -> list[dict[str, str]]:
        """The sentences as a transcript whose turn t holds the t-th (the listener's own words are left out)."""
        silent = {"role": "assistant", "content": ""}
        return [m for text in self.sentences for m in (silent, {"role": "user", "content": text})]


def load_casino(folder: str | Path) -> list[Negotiator]:
    """Both parties of every dialogue of `casino_train.json[.gz]` and `casino_valid.json[.gz]`.

    Raises:
        DataError: If a file or a field is missing; names the file and the dialogue's row.
    """
    out: list[Negotiator] = []
    for name in ("casino_train.json", "casino_valid.json"):
        path = next((p for p in (Path(folder) / f"{name}.gz", Path(folder) / name) if p.is_file()), None)
        if path is None:
            raise DataError(
                f"{name} is missing", "Pass the folder of the CaSiNo repository's data/split.", file=str(folder)
            )
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            dialogues = json.load(file)
        for row, dialogue in enumerate(dialogues, start=1):
            for party, info in dialogue["participant_info"].items():
                try:
                    order = tuple(ITEMS.index(info["value2issue"][level]) for level in ("High", "Medium", "Low"))
                    lines = [m["text"] for m in dialogue["chat_logs"] if m["id"] == party]
                except (KeyError, ValueError) as error:
                    raise DataError(
                        f"no usable {error}", "Use the released files.", file=str(path), row=row, column="value2issue"
                    ) from None
                said = tuple(line for line in lines if line not in BUTTONS and line.strip())
                out.append(Negotiator(str(dialogue["dialogue_id"]), party, TYPES.index(order), said))
    return out
