"""Policies in the HTML report: figures of merit, and conversations turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ..environments.base import Belief, Conversation, World

STYLE = """
.talk{border:1px solid #ccc;border-radius:6px;padding:.6em 1em;margin:1em 0;max-width:60em;font-family:sans-serif}
.talk .a{color:#134}.talk .u{color:#531;margin-left:2em}.talk .i{color:#b00}
.talk .bars{display:flex;gap:2px;height:36px;align-items:flex-end;margin:.2em 0 .8em}
.talk .bars i{background:#9ab;width:16px;display:block}.talk .bars i.t{background:#2a7}
.talk small{color:#666} table.policy td,table.policy th{padding:.2em .8em;text-align:right}
.wide{overflow-x:auto}
"""


LEGEND = (
    "<p>Bars: the belief (<code>{}</code>) over the user's types after each turn, in the order of the table of shares, the true type green. "
    "Beside an utterance: what it does, and the intrinsic reward of its turn. Invalid utterances are red.</p>"
)


def conversation_html(
    conversation: Conversation,
    beliefs: np.ndarray,
    rewards: np.ndarray,
    types: Sequence[str],
    success: float | None = None,
) -> str:
    """One conversation: each turn's lines, its intrinsic reward, and the belief after it as bars (true type green).

    Args:
        conversation: The conversation.
        beliefs: (T + 1, U).
        rewards: (T,) intrinsic rewards.
        types: (U,) names of the types.
        success: The conversation's end reward.
    """
    true = conversation.profile.type_index

    def bars(belief: np.ndarray) -> str:
        cells = "".join(
            f'<i class="{"t" if u == true else ""}" style="height:{max(1, round(36 * p))}px" '
            f'title="{escape(types[u])}: {p:.2f}"></i>'
            for u, p in enumerate(belief)
        )
        return f'<div class="bars">{cells}</div>'

    result = "" if success is None else f"; success {success:g}"
    rows = [f"<small>user: {escape(types[true])}; ended: {escape(str(conversation.ended))}{result}</small>"]
    rows += [f'<div class="u">{escape(m["content"])}</div>' for m in conversation.prompt] + [bars(beliefs[0])]
    for t, turn in enumerate(conversation.turns):
        bad = " i" if turn.act.kind == "invalid" else ""
        rows.append(
            f'<div class="a{bad}">{escape(turn.agent)} <small>{turn.act.kind}, {rewards[t]:+.2f}</small></div>'
        )
        if turn.user is not None:
            rows.append(f'<div class="u">{escape(turn.user)}</div>')
        rows.append(bars(beliefs[t + 1]))
    return '<div class="talk">' + "\n".join(rows) + "</div>"


def conversations_html(
    conversations: Sequence[Conversation], world: World, belief: Belief, curiosity: Any, n: int = 6
) -> str:
    """The first `n` conversations that did not fail, as an HTML fragment without its style sheet."""
    from ..environments.base import turn_counts
    from ..rewards.curiosity import intrinsic_rewards

    shown = [c for c in conversations if not c.failed][:n]
    if not shown:
        return "<p>No conversation reached its end.</p>"
    beliefs = belief.beliefs([c.messages for c in shown])
    types = np.array([c.profile.type_index for c in shown])
    rewards = intrinsic_rewards(beliefs, types, turn_counts(shown), curiosity)
    return "\n".join(
        conversation_html(c, b, r, world.types, world.success(c)) for c, b, r in zip(shown, beliefs, rewards)
    )


def summary_html(results: dict[str, Any]) -> str:
    """The table of `results.json["checkpoints"]`: one row a checkpoint and split."""
    head = ["checkpoint", "users", "success", "95 % interval", "turns", "tokens", "invalid", "failed", "shares off by"]
    rows = []
    for checkpoint, splits in results["checkpoints"].items():
        for split, s in splits.items():
            if "success" not in s:
                rows.append([checkpoint, split, "-", "all failed", "-", "-", "-", str(s["failed"]), "-"])
                continue
            interval = "{:.3f} to {:.3f}".format(*s["success"]["ci95"]) if s["success"]["ci95"] else "one user"
            success = f"{s['success']['value']:.3f}"
            sizes = [f"{s['turns']['value']:.2f}", f"{s['tokens']['value']:.1f}", f"{100 * s['invalid']:.1f} %"]
            shares = f"{s['shares']['total_variation']:.3f}"
            rows.append([checkpoint, split, success, interval, *sizes, str(s["failed"]), shares])
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of texts."""
    cells = lambda tag, row: "".join(f"<{tag}>{escape(x)}</{tag}>" for x in row)  # noqa: E731
    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="policy"><tr>{cells("th", head)}</tr>\n{body}</table></div>'


def belief_html(results: dict[str, Any]) -> str:
    """Accuracy of the belief's most probable type after each turn: one row a checkpoint and split."""
    rows = [
        [checkpoint, split, *(f"{point['value']:.3f}" for point in s["belief_accuracy"]), f"{s['belief_ece']:.3f}"]
        for checkpoint, splits in results["checkpoints"].items()
        for split, s in splits.items()
        if "belief_accuracy" in s
    ]
    width = max((len(row) for row in rows), default=3)
    head = ["checkpoint", "users", *(f"turn {t}" for t in range(width - 3)), "calibration error"]
    return table(head, [[*row[:-1], *[""] * (width - len(row)), row[-1]] for row in rows])


def shares_html(results: dict[str, Any]) -> str:
    """How often each type was recommended, and how often it was the user's."""
    scored = [
        (checkpoint, split, s["shares"])
        for checkpoint, splits in results["checkpoints"].items()
        for split, s in splits.items()
        if "shares" in s
    ]
    if not scored:
        return ""
    rows, shown = [], set()
    for checkpoint, split, shares in scored:
        if split not in shown:
            rows.append(["true", split, *(f"{x:.3f}" for x in shares["true"])])
            shown.add(split)
        rows.append([checkpoint, split, *(f"{x:.3f}" for x in shares["recommended"])])
    return table(["recommended by", "users", *scored[0][2]["types"]], rows)


def page(results: dict[str, Any], fragments: dict[str, str]) -> str:
    """A self-contained page: the tables, then each fragment under its heading."""
    tables = {"Belief accuracy by turn": belief_html(results), "Shares of the types": shares_html(results)}
    parts = [f"<h2>{escape(title)}</h2>\n{html}" for title, html in tables.items() if html]
    parts += [
        LEGEND.format(escape(results.get("belief", "exact"))),
        *(f"<h2>{escape(title)}</h2>\n{html}" for title, html in fragments.items()),
    ]
    return (
        f'<!doctype html><meta charset="utf-8"><title>policy</title><style>{STYLE}</style>\n<h1>Policy</h1>\n'
        f"<p><code>{escape(results.get('command', ''))}</code></p>\n{summary_html(results)}\n"
        + "\n".join(parts)
        + "\n"
    )
