"""Small data to try things with: questions of three kinds with options, and handwritten digits as images.

Run it with: python examples/sample_data.py FOLDER
"""

import json
import random
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def question(kind: str, rng: random.Random) -> dict[str, str]:
    """One row: the columns question, A to D, answer."""
    a, b = rng.randint(2, 49), rng.randint(2, 49)
    asked, right = {
        "sums": (f"What is {a} plus {b}?", a + b),
        "differences": (f"What is {a + b} minus {b}?", a),
        "products": (f"What is {a} times {b % 9 + 2}?", a * (b % 9 + 2)),
    }[kind]
    options = [right, right + 1, right + 10, abs(right - 10) + 3]
    rng.shuffle(options)
    return {"question": asked, **dict(zip("ABCD", map(str, options), strict=True)), "answer": "ABCD"[options.index(right)]}


def main(folder: Path) -> None:
    """Write questions/<kind>/train.jsonl and test.jsonl, and images/train.npz and test.npz."""
    rng = random.Random(0)
    for kind in ("sums", "differences", "products"):
        for split, rows in (("train", 200), ("test", 60)):
            path = folder / "questions" / kind / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(question(kind, rng)) + "\n" for _ in range(rows)))
    digits = load_digits()
    x = np.repeat(np.repeat((digits.images * 15.9).astype(np.uint8), 2, axis=1), 2, axis=2)  # 16 × 16 pixels, grey
    (folder / "images").mkdir(exist_ok=True)
    for split, at in (("train", slice(0, 1400)), ("test", slice(1400, None))):
        np.savez(folder / "images" / f"{split}.npz", x=x[at], y=digits.target[at])
    print(f"{folder}: questions of three kinds, and images")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
