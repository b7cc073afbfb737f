"""A judge's opinion of a whole conversation as an end reward."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

PROMPT = (
    "Who the user is: {description}\n\nConversation:\n{transcript}\n\nDid the assistant end with what suits this user? "
    "Answer with one word, yes or no."
)


def parse_yes_no(answer: str | None) -> float | None:
    """1.0 for `yes`, 0.0 for `no` (alone, or alone on the last line), None for anything else."""
    lines = [line for line in (answer or "").strip().lower().splitlines() if line.strip()]
    word = re.sub(r"[^a-z]", "", re.sub(r"^answer\s*[:=]\s*", "", lines[-1].strip())) if lines else ""
    return {"yes": 1.0, "no": 0.0}.get(word)


def judge_reward(complete: Callable[[list[str]], list[str | None]]) -> Callable:
    """A TRL reward function for `MultiTurnGRPOTrainer`: a language model says whether the conversation ended well.

    The judge reads the hidden profile, which a reward may; the policy never sees the judge's prompt. An answer that is
    neither yes nor no gives None, which TRL leaves out, and is counted as `judge/invalid` in the log.

    Args:
        complete: Prompts -> answers (None where the model failed), such as
            `pluralrlhf.environments.endpoint.LocalChat` or `ChatEndpoint`.
    """

    def judge(conversation: Sequence[Any], log_metric: Callable | None = None, **kwargs: Any) -> list[float | None]:
        asked = [i for i, c in enumerate(conversation) if not c.failed]
        prompts = []
        for i in asked:
            said = "\n".join(f"{m['role']}: {m['content']}" for m in conversation[i].messages)
            prompts.append(PROMPT.format(description=conversation[i].profile.description, transcript=said))
        out: list[float | None] = [None] * len(conversation)
        for i, answer in zip(asked, complete(prompts) if prompts else []):
            out[i] = parse_yes_no(answer)
        if log_metric is not None and asked:
            log_metric("judge/invalid", sum(out[i] is None for i in asked) / len(asked))
        return out

    return judge
