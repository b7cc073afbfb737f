"""Intrinsic rewards for learning about the user (Wan et al. 2025, arXiv 2504.03206).

With b_t the belief over user types after turn t and u* the user's type, turn t + 1 (from b_t to b_{t+1}) earns

| name           | reward                                   | potential phi(b)   | sum over a conversation (gamma = 1, keep) |
|----------------|------------------------------------------|--------------------|-------------------------------------------|
| `diff_acc`     | gamma phi(b_{t+1}) - phi(b_t)            | b(u*)              | at most 1                                 |
| `diff_log_acc` | the same                                 | log b(u*), floored | at most log U, from a uniform prior       |
| `diff_ent`     | the same                                 | -H(b)              | at most log U                             |
| `acc`          | b_{t+1}(u*) - 1 / U                      | none               | grows with the number of turns            |
| `ent`          | log U - H(b_{t+1})                       | none               | grows with the number of turns            |
| `info_gain`    | KL(b_{t+1} || b_t)                       | none               | can grow by going back and forth          |

**`terminal_potential`**. Potential-based shaping leaves the optimal policy unchanged only if the potential of the end
of the conversation is zero (or, at gamma = 1, a constant). `zero` sets it so: the last turn earns -phi(b_{T-1}). With
plain returns to go the return at turn t is then R - phi(b_t), and since phi(b_t) does not depend on the turn's action,
shaping changes nothing but the variance. `keep` leaves phi(b_T) in place: at gamma = 1 the objective becomes
R + weight * phi(b_T), a bonus for having found out who the user is. That can change the optimal policy, and it is what
speeds learning up. The default is `keep`, because with returns to go as credit `zero` cannot help; use it where the end
reward's optimum must not move. `acc`, `ent` and `info_gain` have no potential and ignore the setting.

Truncated credit (the trainer's `turn_lambda` below 1, the potential as the critic) moves the optimum by itself, unless
the potential is the value of going on: the end reward reaches a turn k turns earlier as (gamma lambda)^k of itself, so
that ending early pays. With `zero` and a potential below zero (`diff_log_acc`, `diff_ent`) it pays most of all: the end
earns -phi(b_{T-1}) at once, the more the less is known. Use `keep` there.

With an exact belief, types drawn from its prior and gamma = 1, the expected `diff_log_acc` (not floored), `diff_ent`
and `info_gain` are all the mutual information of type and answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError

POTENTIAL_BASED = ("diff_acc", "diff_log_acc", "diff_ent")
REWARDS = (*POTENTIAL_BASED, "acc", "ent", "info_gain")


@dataclass
class CuriosityConfig:
    """Settings of the intrinsic reward.

    Args:
        reward: One of `diff_acc`, `diff_log_acc`, `diff_ent`, `acc`, `ent`, `info_gain`, or `none`.
        weight: Factor on the intrinsic reward.
        gamma: Discount inside the potential difference; use the same for the return.
        terminal_potential: `keep` (default) or `zero`; see the module's text.
        placement: `turn`, or `end`, which pays the conversation's whole sum at its last turn: at gamma = 1 with a
            `keep` potential this is phi(b_T) - phi(b_0), the control "end reward + phi(b_T) at the end only".
        floor: Smallest probability that enters a logarithm; bounds `diff_log_acc` and `info_gain`.
        clip: Largest absolute intrinsic reward of a turn before weighting; None for no clipping.
        shuffle: Whether conversations get each other's intrinsic rewards (a control: same sizes, no information).
    """

    reward: str = "diff_log_acc"
    weight: float = 1.0
    gamma: float = 1.0
    terminal_potential: str = "keep"
    placement: str = "turn"
    floor: float = 1e-3
    clip: float | None = None
    shuffle: bool = False

    def __post_init__(self):
        for name, allowed in (
            ("reward", (*REWARDS, "none")),
            ("terminal_potential", ("zero", "keep")),
            ("placement", ("turn", "end")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"`{name}` is {getattr(self, name)!r}; use one of {', '.join(allowed)}.")
        if not 0 < self.gamma <= 1:
            raise ConfigError(f"`gamma` is {self.gamma}; it must lie in (0, 1].")
        if not 0 <= self.floor < 1:
            raise ConfigError(f"`floor` is {self.floor}; it must lie in [0, 1).")
        if self.clip is not None and self.clip <= 0:
            raise ConfigError(f"`clip` is {self.clip}; it must be positive, or left out.")


def _log(probabilities: np.ndarray, floor: float) -> np.ndarray:
    return np.log(np.maximum(probabilities, max(floor, np.finfo(np.float64).tiny)))


def entropy(beliefs: np.ndarray) -> np.ndarray:
    """H(b) in nats over the last axis."""
    return -(beliefs * _log(beliefs, 0.0)).sum(axis=-1)


def potential(name: str, beliefs: np.ndarray, true_type: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """phi(b) of beliefs (N, T + 1, U) for true types (N,) -> (N, T + 1).

    Raises:
        ConfigError: For a reward that has no potential.
    """
    if name == "diff_ent":
        return -entropy(beliefs)
    if name not in POTENTIAL_BASED:
        raise ConfigError(f"`{name}` has no potential; use one of {', '.join(POTENTIAL_BASED)}.")
    mass = np.take_along_axis(beliefs, np.asarray(true_type)[:, None, None], axis=2)[..., 0]
    return mass if name == "diff_acc" else _log(mass, floor)


def intrinsic_rewards(
    beliefs: np.ndarray, true_type: np.ndarray, n_turns: np.ndarray, config: CuriosityConfig
) -> np.ndarray:
    """Intrinsic reward of every turn.

    Args:
        beliefs: (N, T + 1, U), before the first turn and after each.
        true_type: (N,) index of the user's type.
        n_turns: (N,) number of turns of each conversation, at most T.
        config: The reward and its settings; `shuffle` is the trainer's to apply.

    Returns:
        (N, T) rewards, weighted; zero past a conversation's end.
    """
    beliefs, n_turns = np.asarray(beliefs, dtype=np.float64), np.asarray(n_turns)
    n, n_points, n_types = beliefs.shape
    turn = np.arange(n_points - 1)
    if config.reward == "none":
        return np.zeros((n, n_points - 1))
    if config.reward in POTENTIAL_BASED:
        phi = potential(config.reward, beliefs, true_type, config.floor)
        after = phi[:, 1:].copy()
        if config.terminal_potential == "zero":
            after[turn == (n_turns - 1)[:, None]] = 0.0
        rewards = config.gamma * after - phi[:, :-1]
    elif config.reward == "acc":
        mass = np.take_along_axis(beliefs[:, 1:], np.asarray(true_type)[:, None, None], axis=2)[..., 0]
        rewards = mass - 1 / n_types
    elif config.reward == "ent":
        rewards = np.log(n_types) - entropy(beliefs[:, 1:])
    else:
        after, before = beliefs[:, 1:], beliefs[:, :-1]
        rewards = (after * (_log(after, 0.0) - _log(before, config.floor))).sum(axis=-1)
    if config.clip is not None:
        rewards = rewards.clip(-config.clip, config.clip)
    rewards = np.where(turn < n_turns[:, None], config.weight * rewards, 0.0)
    if config.placement == "end":
        total = rewards.sum(axis=1)
        rewards = np.where(turn == (n_turns - 1)[:, None], total[:, None], 0.0)
    return rewards


def returns_to_go(rewards: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    """Discounted sums of the rewards from each turn on, (N, T) -> (N, T)."""
    out = np.zeros_like(rewards, dtype=np.float64)
    running = np.zeros(len(rewards))
    for t in range(rewards.shape[1] - 1, -1, -1):
        running = rewards[:, t] + gamma * running
        out[:, t] = running
    return out
