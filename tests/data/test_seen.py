"""Whose choices a model was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from safetensors.numpy import save_file

from pluralrlhf.data.seen import FILE, check_unseen, choices, read_sketch, sketch, trained_apart, write_sketch
from pluralrlhf.errors import ConfigError


def split(users, n=20, seed=0):
    """`n` choices of each user, as conversations."""
    rng = np.random.default_rng(seed)
    rows = [(user, f"{a}", f"{b}") for user in users for a, b in rng.integers(0, 1000, (n, 2))]
    chosen, rejected = ([[{"role": "assistant", "content": row[side]}] for row in rows] for side in (1, 2))
    return Dataset.from_dict({"user_id": [row[0] for row in rows], "chosen": chosen, "rejected": rejected})


def turned(data):
    return data.rename_columns({"chosen": "rejected", "rejected": "chosen"})


def test_a_sketch_is_of_the_choices_alone(tmp_path):
    data = split(["ann", "bob"])
    order = np.random.default_rng(1).permutation(len(data))
    np.testing.assert_array_equal(sketch(data), sketch(turned(data).select(order)))
    assert len(sketch(data)) == 2 * 8 and len(list(choices(data))) == 40
    write_sketch(data, tmp_path)
    np.testing.assert_array_equal(read_sketch(tmp_path), sketch(data))
    assert read_sketch(tmp_path / "none") is None
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"digests of training users in .* damaged or only partly there"):
        read_sketch(tmp_path)
    save_file({"others": np.zeros(2)}, str(tmp_path / FILE))
    with pytest.raises(ConfigError, match="choices"):
        read_sketch(tmp_path)
    assert not trained_apart([sketch(data), None, sketch(data)]) and trained_apart(
        [sketch(data), sketch(split(["ann"]))]
    )


def test_users_whom_a_model_knows_are_refused_where_they_are_called_unseen():
    known, others = split(["ann", "bob"]), split(["cleo"], seed=1)
    both = Dataset.from_list([*turned(known).to_list(), *others.to_list()])
    for name in ("validation", "test_unseen_users_seen_items"):
        with pytest.raises(ConfigError, match=f"`--model` m: 2 of the 3 users of `{name}` made"):
            check_unseen({"m": sketch(known)}, {"train": known, name: both})
    check_unseen({"m": sketch(known)}, {"train": known, "test_seen_users_seen_items": both, "validation": others})
    # The same name in another table is another person, also where the two made one and the same choice.
    check_unseen(
        {"m": sketch(known)}, {"validation": Dataset.from_list([*split(["ann"], seed=2).to_list(), known[0]])}
    )
    check_unseen({"m": sketch(known)}, {"validation": split(["ann", "bob"], seed=2)})
    check_unseen({}, {"validation": known})
    one = known.select([0])
    with pytest.raises(ConfigError, match="1 of the 1 users"):
        check_unseen({"m": sketch(one)}, {"validation": turned(one)})
