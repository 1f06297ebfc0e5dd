"""What docs/guide/four-text-tasks.md starts from: a tiny language model with its tokenizer, and four small data sets.

Everything is made here, so that the page can be followed without a download: the weights are random, and the texts are put
together from a few words. With a model and data of your own you need none of it.

Run it with: python examples/four_text_tasks.py FOLDER
"""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path

import pyarrow
import torch
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TRAIN, TEST = 240, 80
GOOD, BAD = ("good", "great", "lovely", "fine"), ("bad", "awful", "dull", "poor")
TOPICS = {"sport": ("match", "goal", "team"), "money": ("bank", "price", "market"), "weather": ("rain", "wind", "snow")}
THINGS, COLOURS = ("car", "house", "boat", "coat"), ("red", "blue", "green", "white")
Row = dict[str, str | float]


def review(draw: random.Random) -> Row:
    label = draw.choice(("negative", "positive"))
    word = draw.choice(GOOD if label == "positive" else BAD)
    return {"review": f"the {draw.choice(THINGS)} was {word} today", "mood": label}


def title(draw: random.Random) -> Row:
    label = draw.choice(list(TOPICS))
    return {"title": f"{draw.choice(TOPICS[label])} and {draw.choice(TOPICS[label])} this week", "topic": label}


def pair(draw: random.Random) -> Row:
    one, other = (draw.choice(COLOURS[:2]) for _ in range(2))
    return {"first": f"a {one} car", "second": f"the car is {other}", "agree": "yes" if one == other else "no"}


def rating(draw: random.Random) -> Row:
    words = [draw.choice((*GOOD, *BAD)) for _ in range(4)]
    return {"comment": " ".join(words), "stars": 1.0 + sum(word in GOOD for word in words)}


def write(path: Path, rows: list[Row]) -> None:
    """As CSV, JSONL or Parquet, by its name."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    for name, make in (("reviews.csv", review), ("topics.parquet", title), ("pairs.jsonl", pair), ("stars.csv", rating)):
        stem, suffix = name.split(".")
        draw = random.Random(name)
        rows = [make(draw) for _ in range(TRAIN + TEST)]
        write(folder / f"{stem}-train.{suffix}", rows[:TRAIN])
        write(folder / f"{stem}-test.{suffix}", rows[TRAIN:])
        texts += [str(value) for row in rows for value in row.values() if isinstance(value, str)]

    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>"], show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, max_position_embeddings=64, initializer_range=0.2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "model")


if __name__ == "__main__":
    main()
