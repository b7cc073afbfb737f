"""TL;DR: workers compare two summaries of a Reddit post (OpenAI, "Learning to summarize from human feedback").

Every comparison has its worker's id. The files lie at OpenAI's own address: the Hub dataset of this name is a script that
fetches them, and this library runs no code of a dataset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...errors import ConfigError
from ..placebo import placebo_pairs
from ..schema import RowError, messages
from ..splits import hash64
from .hub import HubSource, cell, wording
from .origin import fetch, sha256

URL = "https://openaipublic.blob.core.windows.net/summarize-from-feedback/dataset/comparisons/"


@dataclass
class TLDR(HubSource):
    """A pair a comparison.

    `published`: the post is the prompt, every comparison counts, and its item is the post's id. `strict`: the prompt says
    what is asked and names the subreddit and title that workers saw; posts of the same wording are one item; of a
    worker's repeated comparisons of the same summaries the first counts, and contradictory ones are dropped.
    """

    name: ClassVar[str] = "tldr"
    summary: ClassVar[str] = "TL;DR: which of two summaries of a Reddit post a worker prefers"
    example: ClassVar[str] = "--path comparisons"
    min_pairs_per_user: ClassVar[int | None] = 20
    one_file: ClassVar[bool] = True
    repository: ClassVar[str] = "openai/summarize_from_feedback"
    title: ClassVar[str] = "TL;DR: comparisons of summaries"
    licence: ClassVar[str] = "none stated for the comparisons; the code around them has a modified MIT licence"
    attribution: ClassVar[str] = (
        "Nisan Stiennon et al., 'Learning to summarize from human feedback', NeurIPS 2020; posts from the TL;DR corpus, "
        "Michael Völske et al., 2017."
    )

    path: str | None = field(
        default=None,
        metadata={
            "help": "local copy: a folder with batch3.json, ... (or comparisons/*.parquet as the Hub converts them), or "
            "one such file (default: OpenAI's address)"
        },
    )
    batches: str = field(default="3-20,22", metadata={"help": "which batches, such as 3-10 for the training batches"})
    origin_split: Literal["all", "train", "valid1", "valid2"] = field(
        default="all", metadata={"help": "posts of one of the origin's splits only; this library makes its own"}
    )
    construction: Literal["strict", "published"] = field(
        default="strict", metadata={"help": "the prompt, and what to do about repeated comparisons"}
    )
    placebo: bool = field(
        default=False, metadata={"help": "permute the choices among the workers who compared the same summaries"}
    )
    seed: int = field(default=0, metadata={"help": "of the placebo"})
    origin_url: str = field(default=URL, metadata={"help": "root of the public origin, or of a mirror of it"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._names = [f"batch{number}" for number in _numbers(self.batches)]

    def rows(self) -> Iterator[dict[str, Any] | RowError]:
        """Pair rows in the order of the comparisons."""
        return placebo_pairs(self._pairs, self.seed, self.dropped) if self.placebo else self._pairs()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "origin": "https://github.com/openai/summarize-from-feedback"}

    def notes(self) -> str:
        return "**Placebo**: choices are permuted among the workers of the same pair." * self.placebo

    def _files(self) -> list[Path]:
        if self.path is not None:
            converted = ("comparisons/*.parquet", "comparisons/*/*.parquet")
            if self._local(self._batches()) or not self._local([converted]):
                return self.find(*self._batches())
            return self.find(converted)
        files = []
        for name in self._names:
            file = fetch(self.origin_url, f"{name}.json")
            self.files.setdefault(file.name, sha256(file))
            files.append(file)
        return files

    def _batches(self) -> list[tuple[str, ...]]:
        """The batches' files, each as it lies in a copy."""
        return [(f"{name}.json", f"comparisons/{name}.json") for name in self._names]

    def _pairs(self) -> Iterator[dict[str, Any] | RowError]:
        self.dropped.clear()
        strict = self.construction == "strict"
        contradicted = self._contradicted() if strict else frozenset()
        judged: dict[int, int] = {}
        for path, number, record in self.records(self._files()):
            try:
                read = self._read(record, path, number)
            except RowError as error:
                yield error
                continue
            if isinstance(read, str):
                self.dropped[read] += 1
                continue
            worker, post, prompt, texts, choice = read
            items = [wording("post", post["post"]) if strict else post["id"]]
            pair = hash64(worker, items[0], *sorted(text.strip() for text in texts))
            judged[pair] = repeat = judged.get(pair, 0) + 1
            if pair in contradicted:
                self.dropped["contradictory_repeat"] += 1
                continue
            if strict and repeat > 1:
                self.dropped["repeated_judgment"] += 1
                continue
            yield {
                "user_id": worker,
                "pair_id": f"{pair:016x}" + (f"-{repeat}" if repeat > 1 else ""),
                "item_ids": items,
                "prompt": messages(prompt, "user"),
                "chosen": messages(texts[choice]),
                "rejected": messages(texts[1 - choice]),
                "_file": str(path),
                "_row": number,
            }

    def _contradicted(self) -> frozenset[int]:
        """Keys of what a worker judged more than once and not always alike; 16 bytes a comparison in memory."""
        first: dict[int, int] = {}
        contradicted = set()
        for path, number, record in self.records(self._files()):
            try:
                read = self._read(record, path, number)
            except RowError:  # reported when the rows are read
                continue
            if isinstance(read, str):
                continue
            worker, post, _, texts, choice = read
            pair = hash64(worker, wording("post", post["post"]), *sorted(text.strip() for text in texts))
            winner = hash64(texts[choice].strip())
            if first.setdefault(pair, winner) != winner:
                contradicted.add(pair)
        return frozenset(contradicted)

    def _read(self, record: dict | RowError, path: Path, row: int) -> tuple[str, dict, str, list[str], int] | str:
        """`(worker, post, prompt, summaries, choice)`, or why the comparison is left out."""
        if isinstance(record, RowError):
            raise record
        info, summaries = cell(record, "info", dict, path, row), cell(record, "summaries", list, path, row)
        if self.origin_split != "all" and cell(record, "split", str, path, row) != self.origin_split:
            return "other_split"
        if info.get("post") is None and info.get("article") is not None:
            return "news_article"
        # Parquet, or a file of another name, holds several batches.
        if path.name.partition(".")[0] not in self._names and record.get("batch", self._names[0]) not in self._names:
            return "other_batch"
        worker, choice = cell(record, "worker", str, path, row), cell(record, "choice", int, path, row)
        post = {column: cell(record, f"info.{column}", str, path, row) for column in ("id", "post")}
        where = {"raw": record, "file": str(path), "row": row}
        if len(summaries) != 2:
            found = f"{len(summaries)} summaries where two are compared"
            raise RowError("wrong_type", found, "Fetch the file again", column="summaries", **where)
        if choice not in (0, 1):
            remedy = "It is 0 or 1; or use --skip_invalid"
            raise RowError("bad_vote", f"choice {choice}", remedy, column="choice", **where)
        texts = [cell(s if isinstance(s, dict) else {}, "text", str, path, row) for s in summaries]
        if not post["post"].strip() or not all(text.strip() for text in texts):
            return "empty_text"
        if texts[0].strip() == texts[1].strip():
            return "identical_responses"
        if self.construction == "published":
            return worker, post, post["post"], texts, choice
        lines = ["Summarize this Reddit post.", f"Subreddit: r/{info.get('subreddit')}", f"Title: {info.get('title')}"]
        return worker, post, "\n".join(lines) + f"\n\n{post['post'].strip()}", texts, choice


def _numbers(batches: str) -> list[int]:
    """`3-10,22` as numbers."""
    numbers: list[int] = []
    for part in batches.split(","):
        match = re.fullmatch(r"\s*(\d{1,3})(?:-(\d{1,3}))?\s*", part)
        span = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not span:
            raise ConfigError(
                f"`batches` is {batches[:40]!r}: numbers and rising ranges are expected, such as 3-10,22"
            )
        numbers += span
    return list(dict.fromkeys(numbers))
