"""HH-RLHF: which of two assistant responses is more helpful, or more harmless.

The data has no worker ids. As in VPL, a *labeller* is what the workers were asked to judge by: one for the `helpful`
subsets, one for the `harmless` ones. Each labeller's judgments are shared out among users of that kind, by hash. Helpful
and harmless prompts differ, so that a prompt alone tells much of its labeller: gains here are partly gains of the subject.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...errors import ConfigError
from ..schema import RowError
from ..splits import hash64
from .hub import HubSource, cell, share_out, wording

SUBSETS = ("helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base")
# The origin's own markers of who speaks.
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_WORDS = {"helpful": "how helpful it is", "harmless": "how well it avoids harm"}


@dataclass
class HHRLHF(HubSource):
    """A pair a row: what the two conversations share is the prompt.

    `published`: rows as they are; the item is the prompt. `strict`: the conversations must differ in the last response
    only and take turns properly, and the item is the opening message, so that a conversation and its beginning are on
    the same side.
    """

    name: ClassVar[str] = "hh_rlhf"
    summary: ClassVar[str] = "HH-RLHF: helpful and harmless as two labellers, shared out among users"
    example: ClassVar[str] = "--path hh-rlhf"
    min_pairs_per_user: ClassVar[int | None] = 2
    repository: ClassVar[str] = "Anthropic/hh-rlhf"
    title: ClassVar[str] = "HH-RLHF: helpful and harmless labellers"
    licence: ClassVar[str] = "MIT"
    attribution: ClassVar[str] = (
        "Yuntao Bai et al., 'Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback', "
        "2022; Anthropic."
    )

    path: str | None = field(
        default=None,
        metadata={
            "help": "local copy: a clone (helpful-base/train.jsonl.gz, ...) or files like harmless-base_test.jsonl.gz "
            "(default: from the Hub)"
        },
    )
    revision: str = field(
        default="main", metadata={"help": "commit or tag of the Hub dataset: pin it to build the same again"}
    )
    subsets: list[str] = field(
        default_factory=lambda: ["helpful-base", "harmless-base"], metadata={"help": f"of {', '.join(SUBSETS)}"}
    )
    splits: list[str] = field(
        default_factory=lambda: ["train", "test"],
        metadata={"help": "files of the origin that are read, train and test; this library makes its own splits"},
    )
    construction: Literal["strict", "published"] = field(
        default="strict", metadata={"help": "drop rows that differ in more than the last response, or keep them"}
    )
    users_per_labeller: int = field(
        default=100, metadata={"help": "users who share a labeller's judgments among them"}
    )
    placebo: bool = field(
        default=False, metadata={"help": "share all judgments out among all users, whichever labeller gave them"}
    )
    seed: int = field(default=0, metadata={"help": "of who gets which judgment"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("subsets", SUBSETS), ("splits", ("train", "test"))):
            given = getattr(self, name)
            if not given or not set(given) <= set(known):
                raise ConfigError(f"`{name}` is {' '.join(given)[:60]!r}: choose of {', '.join(known)}")
        if self.users_per_labeller < 1:
            raise ConfigError(f"`users_per_labeller` is {self.users_per_labeller}: 1 or more is expected")

    @property
    def labellers(self) -> list[str]:
        return list(dict.fromkeys(subset.partition("-")[0] for subset in self.subsets))

    def rows(self) -> Iterator[dict[str, Any] | RowError]:
        """Yields pair rows, subset by subset, in the files' order."""
        self.dropped.clear()
        seen: set[int] = set()
        for subset in self.subsets:
            labeller = subset.partition("-")[0]
            for path, number, record in self.records(self._files(subset)):
                try:
                    if isinstance(record, RowError):
                        raise record
                    read = self._read(record, path, number)
                except RowError as error:
                    yield error
                    continue
                if isinstance(read, str):
                    self.dropped[read] += 1
                    continue
                prompt, chosen, rejected = read
                texts = ["\x1e".join(m["role"] + m["content"] for m in part) for part in (prompt, chosen, rejected)]
                key = hash64(labeller, texts[0], *sorted(texts[1:]))
                if key in seen:
                    self.dropped["repeated_judgment"] += 1
                    continue
                seen.add(key)
                said = prompt[:1] if self.construction == "strict" else prompt
                yield {
                    "user_id": share_out(
                        self.labellers if self.placebo else [labeller],
                        self.users_per_labeller,
                        "hh_rlhf placebo" if self.placebo else "hh_rlhf",
                        self.seed,
                        key,
                    ),
                    "pair_id": f"{key:016x}",
                    "item_ids": [wording("hh", *(message["content"] for message in said))],
                    "prompt": prompt,
                    "chosen": chosen,
                    "rejected": rejected,
                    "_file": str(path),
                    "_row": number,
                    "_raw": record,
                }

    def users(self) -> Iterator[dict[str, Any]]:
        """What each user judges by, for oracles."""
        for labeller in self.labellers:
            for number in range(self.users_per_labeller):
                yield {
                    "user_id": f"{labeller}-{number:04d}",
                    "profile": f"I judge a response by {_WORDS[labeller]}.",
                    "attributes": {"labeller": labeller},
                }

    def notes(self) -> str:
        text = (
            "There are no worker ids: a labeller is what the workers were asked to judge by, and its judgments are shared "
            "out among users by hash. Prompts of the two labellers differ."
        )
        return text + " **Placebo**: judgments are shared out whichever labeller gave them." * self.placebo

    def _files(self, subset: str) -> list[Path]:
        return self.find(*((f"{subset}/{split}.jsonl", f"{subset}_{split}.jsonl") for split in self.splits))

    def _read(self, record: dict, path: Path, row: int) -> tuple[list, list, list] | str:
        """`(prompt, chosen, rejected)`, or why the row is left out."""
        sides = []
        for column in ("chosen", "rejected"):
            talk = transcript(cell(record, column, str, path, row))
            if talk is None:
                found = "the text does not begin with the marker of a speaker, Human: or Assistant:"
                remedy = "Fetch the file again, or use --skip_invalid"
                raise RowError("bad_transcript", found, remedy, raw=record, file=str(path), row=row, column=column)
            sides.append(talk)
        strict = self.construction == "strict"
        for talk in sides:
            if talk[-1]["role"] != "assistant":
                return "does_not_end_with_the_assistant"
            if any(not message["content"] for message in talk):
                return "empty_message"
        if strict and any(
            message["role"] != ("user", "assistant")[n % 2] for talk in sides for n, message in enumerate(talk)
        ):
            return "roles_do_not_alternate"
        first, second = sides
        shared = next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
        if first == second:
            return "identical_responses"
        while shared and not (
            shared < min(len(first), len(second)) and first[shared]["role"] == second[shared]["role"] == "assistant"
        ):
            shared -= 1
        if not shared:
            return "no_common_prompt"
        if strict and (len(first) != shared + 1 or len(second) != shared + 1):
            return "differs_before_the_last_response"
        return first[:shared], first[shared:], second[shared:]


def transcript(text: str) -> list[dict[str, str]] | None:
    """The origin's `\\n\\nHuman: … \\n\\nAssistant: …` as messages; None if it does not begin so."""
    before, *parts = _SPEAKER.split(text)
    if before.strip() or not parts:
        return None
    return [{"role": _ROLES[speaker], "content": said.strip()} for speaker, said in zip(parts[::2], parts[1::2])]
