"""A tiny decoder with random weights that knows the words of a suite's datasets: a backbone that trains on a CPU.

    python evals/tiny_backbone.py evals/pets_backbones.yaml --output_dir runs/tiny_pets

Its tokenizer has one token a word. The suite names the folder as `model_name_or_path`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path, help="the suite's file; its datasets are built once to read their words")
    parser.add_argument("--hidden_size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    from pluralrlhf.data import build_dataset, load_pairs
    from pluralrlhf.data.schema import TEXT_COLUMNS
    from pluralrlhf.environments.tiny import tiny_policy, tiny_tokenizer
    from pluralrlhf.evaluation.suite_spec import load_suite
    from pluralrlhf.user_models.text.base import as_text

    texts: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for dataset in load_suite(args.suite).datasets:
            built = dataset.data or Path(folder) / dataset.name
            if not dataset.data:
                build_dataset(dataset.make_source(False), built, progress=False, **dataset.fold_build(0))
            for pairs in load_pairs(built).values():
                texts.update(as_text(row[name]) for row in pairs for name in TEXT_COLUMNS)
    tokenizer = tiny_tokenizer(texts, prose=True)
    model = tiny_policy(tokenizer, seed=args.seed, hidden_size=args.hidden_size, layers=args.layers).model
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    print(f"{args.output_dir}: {model.num_parameters():,} parameters, {len(tokenizer):,} words")


if __name__ == "__main__":
    main()
