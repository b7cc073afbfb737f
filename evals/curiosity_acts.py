"""Every reward in the exercise world, with a policy over acts instead of words: seconds a run, many seeds.

    python evals/curiosity_acts.py --study arms --output_dir evals/results/curio/acts
    python evals/curiosity_acts.py --study longer_talk --output_dir evals/results/curio/acts
    python evals/curiosity_acts.py --study steering --output_dir evals/results/curio/acts

The policy is a small network over what was asked and answered; its acts are the twenty neutral questions, the forty
leading ones, and recommending, which names the type that is most probable under the belief. So there is no language to
lose and no recommender to learn: what is left is which questions a reward makes a policy ask, when it stops, and
whether it leads. Users, answers, belief, rewards and turn-level advantages are those of the package (answers are drawn
by the script's probabilities, without the words).

`arms`: five questions, then the recommendation. `longer_talk`: the policy chooses when to recommend, at most ten turns;
a turn costs 0.1 in every arm (at no cost and gamma 1 an answer cannot hurt, and every arm talks as long as it may). All
arms start from one policy that has learnt what to ask and stops at random, at any turn with probability 0.2.
`steering`: noisy, vague and suggestible users; leading questions are answered with what they suggest 90 % of the time,
and the belief takes that for evidence. At the start half of the questions lead.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from curiosity_arms import ARMS as SETTINGS

from pluralrlhf.environments.exercise import ATTRIBUTES, N_DECIDING, ExerciseWorld, deciding_combinations, strategy_of
from pluralrlhf.rewards.curiosity import CuriosityConfig, intrinsic_rewards, returns_to_go

torch.set_num_threads(1)
A = len(ATTRIBUTES)
RECOMMEND = 3 * A


def reward_of(setting: dict) -> CuriosityConfig:
    """The intrinsic reward of an arm of curiosity_arms.py, whose settings are those of a trainer."""
    rest = {key.removeprefix("curiosity_"): value for key, value in setting.items() if key != "curiosity"}
    return CuriosityConfig(setting["curiosity"], **rest)


# Here the belief is exact, and credit is a return to go: the arms that differ in these only are left out.
ARMS = {name: reward_of(s) for name, s in SETTINGS.items() if name.split("_")[-1] not in ("learned", "trajectory")}


@dataclass
class Study:
    world: ExerciseWorld
    arms: tuple[str, ...]
    suggestible: float = 0.0
    free: bool = False
    turn_cost: float = 0.0
    warm_start: bool = False
    leading_bias: float = -2.5


STUDIES = {
    "arms": Study(ExerciseWorld(), tuple(ARMS)),
    "longer_talk": Study(
        ExerciseWorld(cue=False),
        ("end", "diff_log_acc", "diff_acc", "diff_ent", "acc", "ent"),
        free=True,
        turn_cost=0.1,
        warm_start=True,
    ),
    "steering": Study(
        ExerciseWorld(noise=0.15, vague=0.3),
        ("end", "diff_log_acc", "diff_acc", "diff_ent", "info_gain", "acc", "ent"),
        suggestible=0.9,
        leading_bias=-0.7,
    ),
}


class Conversations:
    """A batch of conversations without words: values, log odds of every attribute, what was asked."""

    def __init__(self, study: Study, combinations: np.ndarray, rng: np.random.Generator):
        n = len(combinations)
        self.study, self.rng, self.n = study, rng, n
        self.values = np.concatenate([combinations, rng.integers(0, 2, (n, A - N_DECIDING))], axis=1)
        self.types = np.array([strategy_of(c) for c in combinations])
        self.belief = study.world.exact_belief().factors
        self.log_odds, self.asked = np.zeros((n, A)), np.zeros((n, A))
        self.turn, self.alive = 0, np.ones(n, dtype=bool)

    def features(self) -> torch.Tensor:
        turn = np.zeros((self.n, 11))
        turn[:, self.turn] = 1
        x = np.concatenate(
            [np.tanh(self.log_odds), np.abs(np.tanh(self.log_odds)), np.minimum(self.asked, 2), turn], 1
        )
        return torch.tensor(x, dtype=torch.float32)

    def types_belief(self) -> np.ndarray:
        from pluralrlhf.user_models.beliefs.exact import normalise

        odds = self.log_odds[:, :N_DECIDING]
        weights = normalise(odds @ self.belief.combinations.T.astype(float))
        return weights @ np.eye(self.belief.n_types)[self.belief.types]

    def step(self, acts: np.ndarray) -> None:
        """Answers to questions, by the script's probabilities; conversations that recommend are over."""
        world, rng = self.study.world, self.rng
        self.alive &= acts != RECOMMEND
        rows = np.where(self.alive)[0]
        attribute, form = acts[rows] % A, acts[rows] // A  # form: 0 neutral, 1 and 2 suggest value 0 and 1
        self.asked[rows, attribute] += 1
        suggested = form - 1
        agrees = (form > 0) & (rng.random(len(rows)) < self.study.suggestible)
        luck = rng.random(len(rows))
        vague = (luck < world.vague) & ~agrees
        change = (luck >= world.vague) & (luck < world.vague + world.change) & ~agrees
        other = (attribute + rng.integers(1, A, len(rows))) % A
        attribute = np.where(change, other, attribute)
        said = self.values[rows, attribute] ^ (rng.random(len(rows)) < world.noise)
        said = np.where(agrees, suggested, said)
        # What was agreed to sticks.
        self.values[rows[agrees], attribute[agrees]] = suggested[agrees]
        evidence = self.belief.log_odds_of_statement * (2 * said - 1) * ~vague
        np.add.at(self.log_odds, (rows, attribute), evidence)
        self.turn += 1


def play(study: Study, policy, combinations: np.ndarray, rng: np.random.Generator, sampler: torch.Generator):
    """Beliefs (N, T + 1, U), acts (N, T), features and log-probabilities, turns (N,), success (N,)."""
    talk = Conversations(study, combinations, rng)
    max_turns = study.world.max_turns
    beliefs, acts, logps, entropies = [talk.types_belief()], [], [], []
    n_turns = np.zeros(talk.n, dtype=int)
    for t in range(max_turns):
        logits = policy(talk.features())
        last = t == max_turns - 1
        forced = torch.zeros_like(logits)
        if last:
            forced[:, :RECOMMEND] = -1e9
        elif not study.free:
            forced[:, RECOMMEND] = -1e9
        distribution = torch.log_softmax(logits + forced, dim=1)
        act = torch.multinomial(distribution.exp().detach(), 1, generator=sampler)[:, 0]
        logps.append(distribution.gather(1, act[:, None])[:, 0])
        entropies.append(-(distribution.exp() * distribution.clamp(min=-50)).sum(dim=1))
        acts.append(act.numpy())
        n_turns += talk.alive
        talk.step(acts[-1])
        beliefs.append(talk.types_belief())
    b = np.stack(beliefs, axis=1)
    final = b[:, -1] + 1e-6 * rng.random((talk.n, b.shape[2]))  # ties are broken at random
    best = final.argmax(axis=1)
    return b, np.stack(acts, 1), torch.stack(logps, 1), torch.stack(entropies, 1), n_turns, best, talk.types


def leave_one_out(values: np.ndarray, present: np.ndarray, group: int) -> np.ndarray:
    from pluralrlhf.trainers.multi_turn_trainer import leave_one_out as of

    return of(torch.from_numpy(values), torch.from_numpy(present), group).numpy()


def start(study: Study, seed: int, settings: argparse.Namespace) -> torch.nn.Module:
    """The policy before training: asks at random, or what a shared warm start has learnt to ask."""
    policy = torch.nn.Sequential(torch.nn.Linear(3 * A + 11, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3 * A + 1))
    with torch.no_grad():
        policy[2].weight.mul_(0.1)
        policy[2].bias[A:RECOMMEND] = study.leading_bias
    if study.warm_start:
        fixed = Study(ExerciseWorld(), ("diff_log_acc",))
        taught = argparse.Namespace(**vars(settings) | {"learning_rate": 5e-3, "entropy": 0.005})
        train(fixed, "diff_log_acc", seed, 150, 150, taught, policy)
        with torch.no_grad():  # stops at any turn with probability 0.2
            policy[2].weight[RECOMMEND] = 0.0
            logits = policy(
                Conversations(study, np.zeros((1, N_DECIDING), dtype=int), np.random.default_rng(0)).features()
            )
            policy[2].bias[RECOMMEND] = torch.logsumexp(logits[0, :RECOMMEND], 0) + np.log(0.2 / 0.8)
    return policy


def train(
    study: Study, arm: str, seed: int, steps: int, eval_every: int, settings: argparse.Namespace, policy=None
) -> dict:
    """One run: its learning curve on held-out combinations."""
    config = ARMS[arm]
    torch.manual_seed(seed)
    rng, sampler = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    policy = policy or start(study, seed, settings)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
    train_users = np.array(deciding_combinations("train"))
    test_users = np.array(deciding_combinations("test"))
    group, curve = 8, []

    def evaluate(step: int) -> None:
        with torch.no_grad():
            dice = np.random.default_rng(10_000), torch.Generator().manual_seed(10_000)
            point = {"step": step}
            for split, users in (("train", train_users), ("test", test_users)):
                many = users[np.arange(1024) % len(users)]
                b, acts, _, _, n_turns, best, types = play(study, policy, many, *dice)
                asked = np.arange(acts.shape[1]) < n_turns[:, None] - 1
                point[split] = {
                    "success": float((best == types).mean()),
                    "turns": float(n_turns.mean()),
                    "leading": float(((acts >= A) & (acts < RECOMMEND))[asked].mean()) if asked.any() else 0.0,
                    "entropy": float(-(b[:, -1] * np.log(np.maximum(b[:, -1], 1e-12))).sum(axis=1).mean()),
                    "belief_true": float(b[np.arange(len(b)), -1, types].mean()),
                    "shares": (np.bincount(best, minlength=8) / len(best)).tolist(),
                    "true_shares": (np.bincount(types, minlength=8) / len(types)).tolist(),
                }
            curve.append(point)

    evaluate(0)
    for step in range(1, steps + 1):
        users = np.repeat(train_users[rng.integers(0, len(train_users), settings.groups)], group, axis=0)
        b, _, logps, entropies, n_turns, best, types = play(study, policy, users, rng, sampler)
        rewards = intrinsic_rewards(b, types, n_turns, config)
        if config.shuffle:
            rewards = rewards[np.roll(np.arange(len(rewards)), 1 + rng.integers(len(rewards) - 1))]
        present = np.arange(rewards.shape[1]) < n_turns[:, None]
        rewards = rewards - study.turn_cost * present
        rewards[np.arange(len(rewards)), n_turns - 1] += best == types
        advantages = torch.from_numpy(leave_one_out(returns_to_go(rewards), present, group)).float()
        mask = torch.from_numpy(present).float()
        loss = -((advantages * logps + settings.entropy * entropies) * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % eval_every == 0:
            evaluate(step)
    return {"arm": arm, "seed": seed, "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--eval_every", type=int, default=15)
    parser.add_argument("--groups", type=int, default=8, help="users a step, eight conversations each")
    parser.add_argument("--learning_rate", type=float, default=5e-3)
    parser.add_argument("--entropy", type=float, default=0.005)
    args = parser.parse_args()
    study, out = STUDIES[args.study], Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    runs = []
    for arm, seed in itertools.product(study.arms, range(args.seeds)):
        runs.append(train(study, arm, seed, args.steps, args.eval_every, args))
        last = runs[-1]["curve"][-1]["test"]
        print(arm, seed, {k: round(v, 3) for k, v in last.items() if isinstance(v, float)}, flush=True)
    given = ("study", "seeds", "steps", "eval_every", "learning_rate", "entropy")
    command = "python evals/curiosity_acts.py " + " ".join(f"--{name} {getattr(args, name)}" for name in given)
    (out / f"{args.study}.json").write_text(json.dumps({"schema": 1, "command": command, "runs": runs}) + "\n")
    with open(out / f"{args.study}.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "seed", "step", "split", "success", "turns", "leading", "entropy", "belief_true"])
        for run in runs:
            for point, split in itertools.product(run["curve"], ("train", "test")):
                p = point[split]
                row = [round(p[k], 4) for k in ("success", "turns", "leading", "entropy", "belief_true")]
                writer.writerow([run["arm"], run["seed"], point["step"], split, *row])


if __name__ == "__main__":
    main()
