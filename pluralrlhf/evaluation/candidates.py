"""Rewards of many candidate responses for many users, streamed to parquet.

Users are encoded once; candidates are read a block at a time, their features computed once a block, and one file is
written a block. A file appears under its name when it is whole, so that the same call goes on where an earlier one was
stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..data import data_sha256, load_pairs
from ..data.history import UserHistory, mix, stable_hash
from ..data.progress import Progress
from ..errors import ConfigError, DataError
from ..files import sha256_of, write_json
from ..modeling.packing import check_packing
from ..modeling.saving import weights_sha256
from .controls import Context
from .scorers import load_model, load_scorers
from .storage import release_memory

if TYPE_CHECKING:
    from ..user_models import UserState

SCORES_SCHEMA = pa.schema(
    [
        ("user_id", pa.dictionary(pa.int32(), pa.string())),
        ("candidate", pa.int64()),
        ("response", pa.int32()),
        ("reward", pa.float32()),
    ]
)
MANIFEST = "score.json"
_USERS_AT_ONCE = 512


def prompt_and_responses(row: Any, file: str, number: int) -> tuple[Any, list[Any]]:
    """The prompt of a row of a file, and its `responses`, or its `response` as the only one.

    Raises:
        DataError: The row is no object, one of both is missing, or a response is empty.
    """
    found, remedy = None, "Give `prompt` and `response` (or a list, `responses`) in each row."
    if not isinstance(row, dict):
        found = f"the row is a {type(row).__name__}"
    elif "prompt" not in row or row["prompt"] is None:
        found = "`prompt` is missing"
    elif row.get("responses") is None and row.get("response") is None:
        found = "`response`, or `responses`, is missing"
    else:
        responses = [row["response"]] if row.get("responses") is None else row["responses"]
        if not isinstance(responses, list):
            found = f"`responses` is a {type(responses).__name__}, not a list"
        elif not responses:
            found = "`responses` is empty"
        elif not all(responses):
            found = f"response {next(i for i, text in enumerate(responses) if not text)} (from 0) is empty"
            remedy = "Leave it out: an empty text has no reward."
    if found is not None:
        raise DataError(found, remedy, file=file, row=number)
    return row["prompt"], responses


def read_candidates(path: Path) -> Iterator[tuple[int, Any, list[Any]]]:
    """Yields (number of the row, prompt, responses) of a JSONL or parquet file, without holding it.

    Raises:
        DataError: A row without `prompt`, or without `response` or `responses`, or an empty response.
    """
    if path.suffix == ".parquet":
        try:
            file = pq.ParquetFile(path)
        except pa.ArrowException:
            raise DataError("not a parquet file, or a damaged one", "Write it again.", file=str(path)) from None
        rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
    else:
        rows = _json_lines(path)
    number = -1
    for number, row in enumerate(rows):
        yield number, *prompt_and_responses(row, str(path), number + 1)
    if number < 0:
        raise DataError("there are no candidates", "Give one object a row.", file=str(path))


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(
                        f"not JSON ({error})", "Give one object a line (JSONL).", file=str(path), row=number
                    ) from None


def _blocks(path: Path, size: int) -> Iterator[list[tuple[int, int, Any, Any]]]:
    """Lists of about `size` (row, number of the response, prompt, response); a row is never divided."""
    block: list[tuple[int, int, Any, Any]] = []
    for number, prompt, responses in read_candidates(path):
        block += [(number, place, prompt, response) for place, response in enumerate(responses)]
        if len(block) >= size:
            yield block
            block = []
    if block:
        yield block


def score_candidates(
    model_path: str | Path,
    data: str | Path,
    candidates: str | Path,
    out: str | Path,
    *,
    n_context: int = 8,
    splits: Sequence[str] | None = None,
    block_size: int = 1000,
    batch_size: int = 64,
    packing: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes `scores-00000.parquet` ... with the reward of every candidate for every user of a dataset.

    Args:
        model_path: A saved reward model of the head or the text route.
        data: Dataset folder, whose pairs say who the users are.
        candidates: JSONL or parquet file with `prompt` and `response` or `responses`.
        out: Folder to write to.
        n_context: Pairs of each user that the model is shown, chosen by a hash.
        splits: Splits whose users are scored, from these splits' pairs; all of them by default.
        block_size: Responses in a file.
        batch_size: Texts in a batch of a trained backbone.
        packing: `shared_prefix` has a trained backbone read what texts of a batch begin with in common once.
        progress: Show progress on stderr.

    Returns:
        What is in `score.json`: the call, and the number of users, files and scores.

    Raises:
        ConfigError: `out` holds scores of another call, or a setting does not fit.
        DataError: The dataset or the candidates cannot be read.
    """
    if n_context < 0 or block_size < 1:
        raise ConfigError(f"`n_context` is {n_context}, `block_size` {block_size}; give at least 0 and 1.")
    candidates, out = Path(candidates), Path(out)
    if not candidates.is_file():
        raise ConfigError(f"`candidates`: there is no file {candidates}. Check the path.")
    pairs = load_pairs(data)
    if unknown := [split for split in splits or () if split not in pairs]:
        raise ConfigError(f"`splits` names {', '.join(unknown)}, which the data lacks. It has {', '.join(pairs)}.")
    # All rows before the first score: files of a call whose candidates must be corrected would be in the way.
    for _ in read_candidates(candidates):
        pass
    call = {
        "schema": 1,
        "model": str(model_path),
        "model_sha256": weights_sha256(model_path),
        "data_sha256": data_sha256(data),
        "candidates_sha256": sha256_of([candidates]),
        "splits": list(splits or pairs),
        "n_context": n_context,
        "block_size": block_size,
    }
    done = _earlier(out, call)
    if done is not None:
        return done
    model = load_model(model_path)
    check_packing(model, packing)
    reading = {"batch_size": batch_size, "packing": packing}
    users, state = _users(model, {name: pairs[name] for name in call["splits"]}, n_context, batch_size, progress)
    size = max(1, candidates.stat().st_size)
    seen = [0]
    n_files = n_scores = 0
    with torch.inference_mode(), Progress("responses scored", lambda: min(1.0, seen[0] / size), progress) as bar:
        for number, block in enumerate(_blocks(candidates, block_size)):
            file = out / f"scores-{number:05d}.parquet"
            if not file.exists():
                _write(file, model, users, state, block, reading)
                release_memory()
            seen[0] += sum(len(str(response)) for *_, response in block)
            n_files, n_scores = number + 1, n_scores + len(block) * len(users)
            bar.step(len(block))
    record = {**call, "users": len(users), "files": n_files, "scores": n_scores}
    write_json(out / MANIFEST, record)
    return record


def _earlier(out: Path, call: dict[str, Any]) -> dict[str, Any] | None:
    """Checks that `out` has no scores, or those of this call, which it then notes; the record of a call that finished."""
    if out.is_file():
        raise ConfigError(f"`out` {out} is a file: name a folder.")
    out.mkdir(parents=True, exist_ok=True)
    scores = any(out.glob("scores-*.parquet"))
    if scores and not (out / MANIFEST).is_file():
        raise ConfigError(f"`out` {out} holds scores without {MANIFEST}. Name another folder.")
    # A call that came to nothing, such as one whose model could not be loaded, leaves the folder to others.
    if scores:
        found = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        other = [key for key, value in call.items() if key != "model" and found.get(key) != value]
        if other:
            raise ConfigError(
                f"`out` {out} holds scores of another call ({', '.join(other)} differ). Name another folder."
            )
        return found if "scores" in found else None
    write_json(out / MANIFEST, call)
    return None


def _users(model, splits, n_context: int, batch_size: int, progress: bool) -> tuple[list[str], UserState]:
    """User ids, and their states from the first pairs of each in an order by hash."""
    columns = {name: split.select_columns(["user_id", "pair_id", "item_ids"]) for name, split in splits.items()}
    history = UserHistory(columns)
    order = np.lexsort((mix(history.pair_key, stable_hash("score")), history.user))
    starts = np.searchsorted(history.user[order], np.arange(len(history.users) + 1))
    index = np.full((len(history.users), n_context), -1, dtype=np.int64)
    for user, (low, high) in enumerate(zip(starts[:-1], starts[1:])):
        shown = order[low : min(high, low + n_context)]
        index[user, : len(shown)] = shown
    parts = []
    with torch.inference_mode():
        if model.user_model.route == "text":
            for rows in _chunks(index):
                parts.append(
                    model.encode_users([[_pair(splits, history, row) for row in user if row >= 0] for user in rows])
                )
        else:
            (scorer,) = load_scorers([model], splits, batch_size=batch_size, progress=progress)
            for rows in _chunks(index):
                scorer.prepare(rows.reshape(-1))
                parts.append(scorer.encode(Context(rows, np.zeros(rows.shape, dtype=bool))))
    return history.users, type(parts[0]).cat(parts)


def _chunks(index: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(index), _USERS_AT_ONCE):
        yield index[start : start + _USERS_AT_ONCE]


def _pair(splits, history: UserHistory, row: int) -> dict[str, Any]:
    name = next(name for name, (low, high) in history.splits.items() if low <= row < high)
    pair = splits[name][int(row) - history.splits[name][0]]
    return {key: pair[key] for key in ("prompt", "chosen", "rejected")}


def _write(file: Path, model, users: Sequence[str], state: UserState, block, reading: dict[str, Any]) -> None:
    """All users' rewards of one block, a row group for some users at a time."""
    prompts, responses = [prompt for *_, prompt, _ in block], [response for *_, response in block]
    candidate = np.array([number for number, *_ in block], dtype=np.int64)
    place = np.array([place for _, place, *_ in block], dtype=np.int32)
    by_text = model.user_model.route != "head"
    features = None if by_text else model.user_model.standardize(model.featurize(prompts, responses, **reading))
    part = file.with_name(file.name + ".part")
    with pq.ParquetWriter(part, SCORES_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(users), _USERS_AT_ONCE):
            some = slice(start, min(len(users), start + _USERS_AT_ONCE))
            rows = state.rows(some)
            rewards = (
                model.score_matrix(rows, prompts, responses, **reading)
                if by_text
                else model.user_model.score_matrix(features, rows)
            )
            n = some.stop - some.start
            codes = pa.array(np.repeat(np.arange(n, dtype=np.int32), len(block)))
            names = pa.array(list(users[some]), pa.string())
            columns = [
                pa.DictionaryArray.from_arrays(codes, names),
                pa.array(np.tile(candidate, n)),
                pa.array(np.tile(place, n)),
                pa.array(rewards.float().cpu().numpy().reshape(-1)),
            ]
            writer.write_table(pa.table(columns, schema=SCORES_SCHEMA))
    part.replace(file)
