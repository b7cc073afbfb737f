"""An evaluation's rows as arrays: pairs of a split with the scores of some of the methods, read a piece at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import DataError
from ..metrics import correct, padded_codes
from .controls import CONTEXT_PAIR, OWN
from .storage import PAIRS, PAIRS_SCHEMA, PER_PAIR, Source, release_memory

_SCORE_COLUMNS = ("method", "seed", "n_context", "control", "user_id", "pair_id", "margin", "probability")
_BATCH = 16_384  # pairs read at once
_RELEASE_GROUPS = 16  # row groups between two calls of `release_memory`


@dataclass
class SplitScores:
    """Rows of one dataset and split as arrays over P pairs (a pair in several folds counts as several).

    Attributes:
        users: (P,) user codes; `user_ids[code]` is the id.
        items: (P, m) item codes, -1 padded.
        groups: (P,) folds, ascending.
        agreed: (P,) whether nearly all users agree on the pair.
        seeds: Method to its seeds, in the order of the last dimension below.
        margin: (method, k, control) to (P, S) margins, NaN where there is none.
        probability: (method, k) to (P, S) probabilities of the choices under the user's own context.
        on_context: Method to (n users, 2): right answers and number of answers on the pairs that served as context.
    """

    split: str
    user_ids: list[str]
    users: np.ndarray
    items: np.ndarray
    groups: np.ndarray
    agreed: np.ndarray
    seeds: dict[str, list[int]]
    margin: dict[tuple[str, int, str], np.ndarray]
    probability: dict[tuple[str, int], np.ndarray]
    on_context: dict[str, np.ndarray]

    def sizes(self, method: str) -> list[int]:
        """Numbers of context pairs that the method was evaluated with."""
        return sorted({k for name, k, control in self.margin if name == method and control == OWN})

    def of_fold(self, fold: int) -> SplitScores:
        """The pairs of one fold; they lie side by side, so that nothing is copied."""
        rows = slice(*np.searchsorted(self.groups, [fold, fold + 1]))
        return replace(
            self,
            users=self.users[rows],
            items=self.items[rows],
            groups=self.groups[rows],
            agreed=self.agreed[rows],
            margin={key: values[rows] for key, values in self.margin.items()},
            probability={key: values[rows] for key, values in self.probability.items()},
        )

    def beside(self, other: SplitScores) -> SplitScores:
        """The scores of both on the same pairs; those of `other` where both have a method."""
        parts = ("seeds", "margin", "probability", "on_context")
        return replace(self, **{part: {**getattr(self, part), **getattr(other, part)} for part in parts})

    def own(self, method: str, k: int) -> np.ndarray | None:
        """(P, S) margins under the user's own context; a method without a context has the same ones for every k."""
        found = self.margin.get((method, k, OWN))
        return found if found is not None else self.margin.get((method, 0, OWN))


def load_scores(sources: Sequence[Source], split: str, methods: Collection[str] | None = None) -> SplitScores:
    """Reads the rows of one split from several folders of the same dataset; see `ScoreReader`."""
    return ScoreReader(sources, split).load(methods)


class ScoreReader:
    """The pairs of one split from several folders of the same dataset, read once for the scores of all methods.

    Args:
        sources: Folders; rows of one pair and fold meet, whichever folder they come from.
        split: The split.
    """

    def __init__(self, sources: Sequence[Source], split: str):
        self.sources, self.split = list(sources), split
        pieces: dict[int, list[pa.Table]] = {}
        for source in self.sources:
            _add_pairs(pieces, source, split)
        folds = sorted(pieces)
        pairs = pa.concat_tables([piece for fold in folds for piece in pieces[fold]] or [_NO_PAIRS])
        self._ids = {
            fold: pa.concat_arrays([chunk for piece in pieces[fold] for chunk in piece["pair_id"].chunks])
            for fold in folds
        }
        lengths = [len(self._ids[fold]) for fold in folds]
        self._offset = dict(zip(folds, np.cumsum([0, *lengths]).tolist()))
        users = pairs["user_id"].unify_dictionaries()
        user_ids = users.chunk(0).dictionary.to_pylist() if users.num_chunks else []
        self.pairs = SplitScores(
            split=split,
            user_ids=user_ids,
            users=_concatenated(chunk.indices.to_numpy() for chunk in users.chunks),
            items=_item_codes(pairs["item_ids"]),
            groups=np.repeat(np.array(folds, np.int32), lengths),
            agreed=_concatenated(chunk.to_numpy(zero_copy_only=False) for chunk in pairs["agreed"].chunks).astype(
                bool
            ),
            seeds={},
            margin={},
            probability={},
            on_context={},
        )
        self._place_of_user = {user: place for place, user in enumerate(user_ids)}
        # First pair of each user in each fold and the one after the last: a row is looked for among those of its user.
        self._span = {}
        for fold, length in zip(folds, lengths):
            code = self.pairs.users[self._offset[fold] : self._offset[fold] + length]
            first, end = np.full(len(user_ids), length), np.zeros(len(user_ids), np.int64)
            np.minimum.at(first, code, np.arange(length))
            np.maximum.at(end, code, np.arange(1, length + 1))
            self._span[fold] = first, end

    def load(self, methods: Collection[str] | None = None, own: bool = False) -> SplitScores:
        """The pairs with the scores of these methods.

        Args:
            methods: Only these; all of them if None.
            own: Without the controls.
        """
        scores = replace(self.pairs, seeds={}, margin={}, probability={}, on_context={})
        found: dict[tuple[str, int, str, int], list[np.ndarray]] = {}
        controls = {OWN, CONTEXT_PAIR} if own else None
        for number, group in enumerate(self._row_groups(methods)):
            self._scatter(group, methods, controls, scores, found)
            if number % _RELEASE_GROUPS == 0:
                release_memory()
        for method, seed in sorted({(method, seed) for method, _, _, seed in found}):
            scores.seeds.setdefault(method, []).append(seed)
        for method, k, control in sorted({key[:3] for key in found}):
            columns = [found.pop((method, k, control, seed), None) for seed in scores.seeds[method]]
            scores.margin[method, k, control] = self._side_by_side([c and c[0] for c in columns])
            if control == OWN:
                scores.probability[method, k] = self._side_by_side([c and c[1] for c in columns])
        return scores

    def _nothing(self) -> np.ndarray:
        return np.full(len(self.pairs.users), np.nan, np.float32)

    def _side_by_side(self, columns: Sequence[np.ndarray | None]) -> np.ndarray:
        """(P, S) float32; a single column is not copied."""
        columns = [self._nothing() if column is None else column for column in columns]
        return columns[0][:, None] if len(columns) == 1 else np.stack(columns, axis=1)

    def _row_groups(self, methods: Collection[str] | None) -> Iterator[pa.Table]:
        """Row groups of every `per_pair.parquet` that hold rows of this split and these methods, without the contexts."""
        for source in self.sources:
            names = ["method", "control", "user_id", "pair_id", "split", "dataset"]
            file = _open(source.folder / PER_PAIR, (*_SCORE_COLUMNS, "split"), names)
            present, renamed = file.schema_arrow.names, dict(source.rename)
            wanted = {"split": {self.split}}
            if methods is not None:
                old = {new: name for name, new in renamed.items()}
                wanted["method"] = {old.get(method, method) for method in methods if method not in renamed}
            if source.dataset is not None:
                wanted["dataset"] = {source.dataset}
            columns = [name for name in (*_SCORE_COLUMNS, "split", "dataset", "fold") if name in present]
            for number in _groups_with(file, wanted):
                table = _of_source(file.read_row_group(number, columns=columns), source, self.split)
                if renamed:
                    method = table["method"].cast(pa.string()).combine_chunks().dictionary_encode()
                    names = [renamed.get(name, name) for name in method.dictionary.to_pylist()]
                    method = pa.DictionaryArray.from_arrays(method.indices, pa.array(names, pa.string()))
                    table = table.set_column(table.column_names.index("method"), "method", method)
                if len(table):
                    yield table

    def _scatter(self, group, methods, controls, scores: SplitScores, found) -> None:
        """Puts one row group's margins in their places."""
        names, codes = {}, {}
        for column in ("method", "control", "pair_id", "user_id"):
            values = group[column].combine_chunks()
            values = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
            names[column], codes[column] = values.dictionary, values.indices.to_numpy()
        dictionary = {column: names[column].to_pylist() for column in ("method", "control", "user_id")}
        user_place = np.array([self._place_of_user.get(user, -1) for user in dictionary["user_id"]], dtype=np.int64)
        seed, k, fold = (group[column].to_numpy() for column in ("seed", "n_context", "fold"))
        margin, probability = (group[column].to_numpy() for column in ("margin", "probability"))
        places: dict[int, np.ndarray] = {}
        for rows in _alike([codes["method"], codes["control"], seed, k, fold]):
            first = rows[0]
            method, control = (
                dictionary["method"][codes["method"][first]],
                dictionary["control"][codes["control"][first]],
            )
            f = int(fold[first])
            if (methods is not None and method not in methods) or (controls is not None and control not in controls):
                continue
            if f not in self._ids:
                continue
            if control == CONTEXT_PAIR:
                counts = scores.on_context.setdefault(method, np.zeros((len(scores.user_ids), 2)))
                place = user_place[codes["user_id"][rows]]
                known = place >= 0
                np.add.at(counts[:, 0], place[known], correct(margin[rows[known]]))
                np.add.at(counts[:, 1], place[known], 1)
                continue
            if f not in places:
                places[f] = self._places(f, names["pair_id"], user_place[user_place >= 0])
            place = places[f][codes["pair_id"][rows]]
            known = place >= 0
            key = (method, int(k[first]), control, int(seed[first]))
            if key not in found:
                # Of a control only the margins are asked for.
                found[key] = [self._nothing() for _ in range(2 if control == OWN else 1)]
            for values, into in zip((margin, probability), found[key]):
                into[place[known]] = values[rows[known]]

    def _places(self, fold: int, pair_ids: pa.Array, users: np.ndarray) -> np.ndarray:
        """Where pairs of a fold stand, -1 for those that are not there; all are looked up among the pairs of `users`."""
        first, end = self._span[fold]
        low, high = int(first[users].min(initial=len(self._ids[fold]))), int(end[users].max(initial=0))
        found = pc.index_in(pair_ids, value_set=self._ids[fold].slice(low, max(0, high - low)))
        place = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        return np.where(place < 0, -1, place + low + self._offset[fold])


_NO_PAIRS = pa.table(
    {
        "user_id": pa.chunked_array([], pa.dictionary(pa.int32(), pa.string())),
        "pair_id": pa.chunked_array([], pa.string()),
        "item_ids": pa.chunked_array([], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        "agreed": pa.chunked_array([], pa.bool_()),
    }
)


def _add_pairs(pieces: dict[int, list[pa.Table]], source: Source, split: str) -> None:
    """Adds the pairs of a source, by fold, that are not among those of earlier sources."""
    known = {
        fold: pa.concat_arrays([c for t in tables for c in t["pair_id"].chunks]) for fold, tables in pieces.items()
    }
    file = _open(source.folder / PAIRS, PAIRS_SCHEMA.names, ["user_id", "split", "dataset"])
    columns = [name for name in (*PAIRS_SCHEMA.names, "dataset", "fold") if name in file.schema_arrow.names]
    groups = _groups_with(file, {"split": {split}, **({"dataset": {source.dataset}} if source.dataset else {})})
    at = dict.fromkeys(known, 0)
    for batch in file.iter_batches(batch_size=_BATCH, row_groups=groups, columns=columns):
        table = _of_source(pa.Table.from_batches([batch]), source, split)
        for fold in np.unique(table["fold"].to_numpy()).tolist():
            part = table.filter(pc.equal(table["fold"], fold))
            if fold in known:
                # Most sources hold the same pairs in the same order.
                same = known[fold].slice(at[fold], len(part))
                at[fold] += len(part)
                if same.equals(part["pair_id"].combine_chunks()):
                    continue
                part = part.filter(pc.invert(pc.is_in(part["pair_id"], value_set=known[fold])))
            if len(part):
                pieces.setdefault(fold, []).append(_encoded(part))


def _encoded(part: pa.Table) -> pa.Table:
    """Pairs with users and items as codes; a dictionary holds what occurs, in the order of the rows."""
    lists = part["item_ids"].combine_chunks()
    offsets = np.r_[0, np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy())]
    items = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), lists.flatten().dictionary_encode())
    users = part["user_id"].cast(pa.string()).combine_chunks().dictionary_encode()
    agreed = pc.fill_null(part["agreed"], False)
    return pa.table([users, part["pair_id"], items, agreed], names=["user_id", "pair_id", "item_ids", "agreed"])


def _item_codes(column: pa.ChunkedArray) -> np.ndarray:
    """`metrics.item_codes` of a column of lists of codes, without making each id a Python object."""
    lengths = _concatenated(pc.list_value_length(chunk).to_numpy() for chunk in column.chunks).astype(np.int64)
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type).unify_dictionaries()
    if not flat.num_chunks:
        return padded_codes(lengths, np.zeros(0, np.int64))
    ids = flat.chunk(0).dictionary
    rank = np.empty(len(ids), dtype=np.int32)
    rank[pc.sort_indices(ids).to_numpy()] = np.arange(len(rank))
    return padded_codes(lengths, rank[_concatenated(chunk.indices.to_numpy() for chunk in flat.chunks)])


def _concatenated(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _alike(columns: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Row numbers of the rows that are the same in all columns of integers, ascending."""
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        value = column.astype(np.int64)
        low, high = int(value.min(initial=0)), int(value.max(initial=0))
        if high == low == 0:
            continue
        value = np.unique(value, return_inverse=True)[1].reshape(-1)
        code = code * (int(value.max(initial=0)) + 1) + value
    order = np.argsort(code, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(code[order])) + 1) if len(order) else []


def _groups_with(file: pq.ParquetFile, wanted: Mapping[str, Collection[str]]) -> list[int]:
    """Row groups that may hold rows with one of the wanted values in each of these columns."""
    names = file.schema_arrow.names
    place = {file.metadata.schema.column(i).path: i for i in range(file.metadata.num_columns)}
    out = []
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        for column, values in wanted.items():
            if column not in names:
                continue
            statistics = group.column(place[column]).statistics
            if statistics is not None and statistics.has_min_max:
                low, high = statistics.min, statistics.max
                if not any(low <= value <= high for value in values):
                    break
        else:
            out.append(number)
    return out


def _of_source(table: pa.Table, source: Source, split: str) -> pa.Table:
    """The rows of the split and of the source's dataset, with a column `fold`."""
    for column, value in (("split", split), ("dataset", source.dataset)):
        if value is not None and column in table.column_names:
            table = table.filter(pc.equal(table[column].cast(pa.string()), value))
    if "fold" not in table.column_names:
        table = table.append_column("fold", pa.repeat(pa.scalar(source.fold, pa.int64()), len(table)))
    return table


def _open(path: Path, needed: Sequence[str], dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """The file, if it has the columns `needed`; those among `dictionaries` are read as codes."""
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if missing := [name for name in needed if name not in names]:
            raise DataError("the column is missing", "Evaluate again.", file=str(path), column=missing[0])
        present = [name for name in dictionaries if name in names]
        return pq.ParquetFile(path, metadata=file.metadata, read_dictionary=present) if present else file
    except FileNotFoundError:
        raise DataError(
            "the file does not exist", "Name a folder that `pluralrlhf eval` wrote.", file=str(path)
        ) from None
    except (pa.ArrowException, OSError):
        raise DataError("not a parquet file, or a damaged one", "Evaluate again.", file=str(path)) from None
