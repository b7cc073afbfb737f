"""Files are written whole, where they are and as they are."""

from __future__ import annotations

import json
import os
import stat

from pluralrlhf.cli.user_forget import forget
from pluralrlhf.files import write_json


def test_a_file_keeps_its_rights_and_its_link(tmp_path):
    file, link = tmp_path / "file.json", tmp_path / "link.json"
    file.write_text("old", encoding="utf-8")
    file.chmod(0o600)
    link.symlink_to(file)
    write_json(link, {"text": "half of a \ud83d"})
    assert link.is_symlink() and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text(encoding="utf-8")) == {"text": "half of a \ud83d"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.json", "link.json"]
    write_json(os.devnull, {})
    assert not stat.S_ISREG(os.stat(os.devnull).st_mode)


def test_forgetting_leaves_other_users_pairs_and_nothing_of_the_user(tmp_path):
    anna, bob = {"user_id": "anna", "prompt": "a\u2028b"}, {"user_id": "bob", "prompt": "c"}
    state = {"user_id": "anna", "summary": "likes cats", "pairs": [anna, bob]}
    (tmp_path / "state.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False) for row in (anna, {"pairs": [anna, bob]}, bob)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert sum(entry["rows"] for entry in forget(str(tmp_path), "anna")) == 3
    left = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert left == [{"pairs": [bob]}, bob]
    assert json.loads((tmp_path / "state.json").read_text(encoding="utf-8")) == {"pairs": [bob]}
