"""What the numbers say in plain words: whether a method uses its user, and what the data could have shown at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

COLLAPSE = 0.05
"""Below this flip rate a method does not use the labels of its context."""
HEADLINE_ORDER = (
    "test_unseen_users_unseen_items",
    "test_unseen_users_seen_items",
    "validation",
    "test_seen_users_unseen_items",
    "test_seen_users_seen_items",
    "train",
)
SPLIT_TITLES = {
    "test_unseen_users_unseen_items": "unseen users, unseen items",
    "test_unseen_users_seen_items": "unseen users, seen items",
    "test_seen_users_unseen_items": "known users, unseen items",
    "test_seen_users_seen_items": "known users, seen items",
    "validation": "validation users",
    "train": "training pairs",
}


def headline_split(splits: Iterable[str]) -> str | None:
    """The split that a reader looks at first: users never seen, on items never seen, where there are such."""
    splits = list(splits)
    return next((split for split in HEADLINE_ORDER if split in splits), splits[0] if splits else None)


def points(value: float, sign: bool = False) -> str:
    """A share or a difference of shares in percentage points, `+1.2`."""
    text = f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    return text.replace("-0.0", "0.0").replace("+0.0", "0.0") if text[1:] == "0.0" else text


def interval(metric: Mapping[str, Any] | None, sign: bool = False) -> str:
    """`+1.2 [0.3, 2.1]` in percentage points; a dash where there is nothing."""
    if not metric or metric["value"] is None:
        return "–"
    text = points(metric["value"], sign)
    if metric.get("ci95"):
        low, high = (points(bound) for bound in metric["ci95"])
        text += f" [{low}, {high}]"
    return text


def _above(metric: Mapping[str, Any] | None, bound: float = 0.0) -> bool:
    return bool(metric and metric.get("ci95") and metric["ci95"][0] > bound)


def _below(metric: Mapping[str, Any] | None, bound: float = 0.0) -> bool:
    return bool(metric and metric.get("ci95") and metric["ci95"][1] < bound)


EXACT_CEILING = "ceiling"
"""Name of the ceiling that knows the truth. Another one is a reference: methods may pass it."""


def reference_title(ceiling: str) -> str:
    """What a ceiling is called: by its name where it knows the truth, as a reference elsewhere."""
    return ceiling if ceiling == EXACT_CEILING else f"reference ({ceiling.replace('_', ' ')})"


def knows(ceiling: str | None, split: str) -> bool:
    """Whether a ceiling says what is to find on a split; item-id factors know nothing of items never seen."""
    return ceiling == EXACT_CEILING or (ceiling is not None and "unseen_items" not in split)


def nothing_to_find(ceiling_gain: Mapping[str, Any] | None, placebo_gain: Mapping[str, Any] | None) -> bool:
    """Whether even the ceiling gains no more over a model without users than what a placebo shows."""
    if not ceiling_gain or not ceiling_gain.get("ci95"):
        return False
    placebo = placebo_gain["ci95"][1] if placebo_gain and placebo_gain.get("ci95") else 0.0
    return ceiling_gain["ci95"][0] <= max(0.0, placebo) and ceiling_gain["value"] <= max(0.02, placebo)


def verdict(
    metrics: Mapping[str, Mapping[str, Any]],
    controls: Mapping[str, Mapping[str, Any]] | None,
    *,
    uses_context: bool = True,
    ceiling_gain: Mapping[str, Any] | None = None,
    placebo_gain: Mapping[str, Any] | None = None,
    baseline: str = "btl",
    ceiling: str = "ceiling",
) -> dict[str, str]:
    """What a method does with its user, at one number of context pairs.

    Args:
        metrics: Its metrics there.
        controls: Its controls there; without them a gain cannot be told from a gain that anybody's context gives.
        uses_context: False for a method that has no user by construction.
        ceiling_gain: The ceiling's `gain_over_btl`, where there is a ceiling.
        placebo_gain: The gain of a personalised method trained on placebo data, where there is one.
        baseline: Name of the method without users that `gain_over_btl` compares with.
        ceiling: Name of the ceiling.

    Returns:
        `kind`, one of `worse` (than the baseline, whatever else it does), `no_user`, `ignores_user`, `uses_user`,
        `any_context`, `not_told_apart`, `no_controls`, `harmed`, `nothing_to_find`, `no_gain`, `unknown`; and `text`,
        a sentence's beginning without its subject.
    """
    over = metrics.get("gain_over_btl")
    worse = _below(over)
    versus = f", {interval(over, True)} over {baseline}" if over and over["value"] is not None and not worse else ""
    found = _of_context(metrics, controls, uses_context, ceiling_gain, placebo_gain, baseline, ceiling, versus)
    if worse:
        return {"kind": "worse", "text": f"is worse than {baseline}: {interval(over, True)}; {found['text']}"}
    return found


def _of_context(
    metrics, controls, uses_context, ceiling_gain, placebo_gain, baseline, ceiling, versus
) -> dict[str, str]:
    """What the context does to a method; `versus` is said beside its gain."""
    if not uses_context:
        return {"kind": "no_user", "text": "does not use the user: it scores the same for everybody"}
    shown = metrics.get("mean_context_pairs")
    if shown is not None and shown["value"] == 0:
        return {"kind": "unknown", "text": "was not measured: no user here has a pair that may be shown as context"}
    gain = metrics.get("gain")
    if gain is None or gain["value"] is None or not gain.get("ci95"):
        return {"kind": "unknown", "text": "too little data for an interval"}
    nothing = ""
    if nothing_to_find(ceiling_gain, placebo_gain):
        against = "placebo" if placebo_gain else "no gain"
        nothing = (
            f"nothing to find here: the {ceiling}, {interval(ceiling_gain, True)} over {baseline}, equals {against}"
        )
    flip, wrong = ((controls or {}).get(name) for name in ("flip_rate", "gain_over_wrong_user"))
    blind = flip is not None and flip["value"] is not None and flip["value"] < COLLAPSE
    # What reads a profile has no labels to be turned round; another user's profile still tells.
    if blind and not _above(wrong):
        text = f"does not use the user: turning all labels of the context round changes {points(flip['value'])} % of its choices"
        if wrong is not None and wrong.get("ci95") is not None:
            text += f", and another user's does not show as worse ({interval(wrong, True)} own minus other)"
        if _above(gain):
            text += f" (gain {interval(gain, True)} over its own k = 0 all the same)"
        elif nothing:
            text += f"; {nothing}"
        return {"kind": "ignores_user", "text": text}
    if blind:
        versus += f"; {interval(wrong, True)} over another user's context, whose labels it does not read"
    if _above(gain) and not controls:
        text = f"gains {interval(gain, True)} over its own k = 0{versus}; without controls it may be anybody's context"
        return {"kind": "no_controls", "text": text}
    if _above(gain):
        if wrong is not None and not _above(wrong):
            # Few users, or users who are much alike, leave it open whose context it has to be.
            open_ = wrong.get("ci95") is not None and wrong["ci95"][1] > gain["value"] / 2
            text = f"gains {interval(gain, True)} over its own k = 0, but " + (
                "this data cannot tell that from another user's context"
                if open_
                else "as much from another user's context"
            )
            kind = "not_told_apart" if open_ else "any_context"
            return {"kind": kind, "text": f"{text} ({interval(wrong, True)} own minus other)"}
        return {"kind": "uses_user", "text": f"uses the user: {interval(gain, True)} over its own k = 0{versus}"}
    if _below(gain):
        text = f"is harmed by the context: {interval(gain, True)} over its own k = 0{versus}"
        return {"kind": "harmed", "text": text}
    if nothing:
        text = f"gains nothing ({interval(gain, True)} over its own k = 0); {nothing}"
        return {"kind": "nothing_to_find", "text": text}
    text = f"shows no gain that this data could tell from none: {interval(gain, True)} over its own k = 0{versus}"
    return {"kind": "no_gain", "text": text}
