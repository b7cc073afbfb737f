"""PLUS on pets: the co-trained pair beside what co-training is compared with, several seeds on the same unseen users.

    python evals/plus_pets.py --n_types 2 --output_dir runs/plus-pets-2 --results evals/results/plus/pets-2

Every run of a seed starts from the same summariser and the same reader, and all learn from the same training users. A
run whose folder is complete is not made again. The figures are of test users and unseen sentences; settings were chosen
on validation users of data built with another seed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
REPO = Path(__file__).parents[1]
RECIPES = {2: "recipes/pets/plus.yaml", 4: "recipes/pets/plus_4_types.yaml"}
CO_TRAINED = ("plus", "plus_untrained", "plus_frozen_rm")
READERS = ("extract", "random_sentence", "oracle", "btl")


def run(arguments: list[str], folder: Path) -> None:
    """One command of the package, unless its model is there; notes the seconds that it took, start included."""
    if (folder / "seconds.json").is_file():
        return
    wall, processor = time.time(), sum(os.times()[2:4])
    subprocess.run([sys.executable, "-m", "pluralrlhf", *arguments], check=True)
    seconds = {"wall": round(time.time() - wall, 1), "processor": round(sum(os.times()[2:4]) - processor, 1)}
    (folder / "seconds.json").write_text(json.dumps(seconds))


def train(method: str, seed: int, data: Path, out: Path, recipe: Path, options: list[str]) -> Path:
    """Trains one method from the seed's start and returns its folder."""
    import yaml

    folder, start = out / f"{method}-{seed}", out / f"plus-{seed}" / "start"
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    common = ["--data", str(data), "--output_dir", str(folder), "--seed", str(seed), "--disable_tqdm", "true"]
    if method in CO_TRAINED:
        shared = [] if method == "plus" else ["--start", str(start)]
        run(["train", "summarizer", "--config", str(recipe), "--method", method, *common, *shared, *options], folder)
        return folder
    # As many updates as the co-trained reader has, on as many pairs; texts as long as the summaries.
    text = "{}" if method == "btl" else json.dumps({"max_words": settings["user_model_kwargs"]["max_words"]})
    given = {
        "model_name_or_path": start / "reader",
        "user_model": method,
        "user_model_kwargs": text,
        "max_steps": settings["warmup_reward_steps"] + settings["max_steps"],
        "per_device_train_batch_size": 64,
        "learning_rate": settings["warmup_reward_learning_rate"],
        "lr_scheduler_type": "linear",
        "n_context": settings["n_context"],
        "max_length": settings["reward_max_length"],
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    run(["train", "reward", *flags, *common], folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_types", type=int, choices=(2, 4), default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=CO_TRAINED + READERS, default=list(CO_TRAINED + READERS))
    parser.add_argument("--shift", action="store_true", help="test users are rabbit and bird people")
    parser.add_argument("--n_users", type=int, default=600)
    parser.add_argument("--data_seed", type=int, default=1, help="of users and sentences (settings were chosen on 0)")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of `train summarizer`, last of all")
    parser.add_argument("--output_dir", type=Path, required=True, help="data and models")
    parser.add_argument("--results", type=Path, required=True, help="folder of the figures")
    args = parser.parse_args()

    recipe, data = REPO / RECIPES[args.n_types], args.output_dir / "data"
    if not data.is_dir():
        build = ["data", "build", "pets", "--out", str(data), "--n_types", str(args.n_types)]
        build += ["--n_users", str(args.n_users), "--seed", str(args.data_seed)]
        build += ["--shift"] if args.shift else []
        subprocess.run([sys.executable, "-m", "pluralrlhf", *build], check=True)
    models: dict[str, list[Path]] = {}
    for method in args.methods:
        for seed in range(args.seeds):
            folder = train(method, seed, data, args.output_dir, recipe, args.options)
            models.setdefault(method, []).append(folder)
    evaluate(models, data, args, recipe)


def evaluate(models: dict[str, list[Path]], data: Path, args: argparse.Namespace, recipe: Path) -> None:
    """Every method's accuracy under each text, and the difference to the co-trained pair by user."""
    import yaml

    from pluralrlhf.cli.eval_summarizer import table
    from pluralrlhf.evaluation.evaluate import evaluate_reward
    from pluralrlhf.evaluation.evaluate_summaries import evaluate_summaries

    n_context = yaml.safe_load(recipe.read_text(encoding="utf-8"))["n_context"]
    texts = [folder for method, folders in models.items() if method != "btl" for folder in folders]
    topics = yaml.safe_load(recipe.read_text(encoding="utf-8"))["topics"]
    content = evaluate_summaries(texts, data, args.results, n_context=n_context, topics=topics)
    by_seed = [
        f"{name}, seed by seed: {', '.join(f'{100 * value:.1f}' for value in found['accuracy_by_seed'])}"
        for name, found in content["methods"].items()
    ]
    (args.results / "table.txt").write_text("\n".join([table(content), "", *by_seed]) + "\n", encoding="utf-8")
    if "btl" in models:
        split = ["test_unseen_users_unseen_items"]
        evaluate_reward(models["btl"], data, args.output_dir / "eval-btl", n_context=[0], splits=split)
        shutil.copy(args.output_dir / "eval-btl" / "results.json", args.results / "btl.json")
    seconds = {m: [json.loads((f / "seconds.json").read_text()) for f in fs] for m, fs in models.items()}
    (args.results / "seconds.json").write_text(json.dumps(seconds, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
