"""Makes docs/demo.png, the curves of the demo's report, from its runs: python docs/demo_picture.py [runs/demo]"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from fedexperts.cli.demo import demo_jobs, demo_scenario  # noqa: E402  # of this checkout
from fedexperts.ledger import summary  # noqa: E402
from fedexperts.report.draw import figure  # noqa: E402
from fedexperts.report.progress import progress_figure  # noqa: E402
from fedexperts.runs.parallel import folder  # noqa: E402

if __name__ == "__main__":
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    summaries = {name: summary(runs / folder(name) / "ledger.jsonl") for name in demo_jobs(demo_scenario())}
    figure(progress_figure(summaries), legend=True).savefig(ROOT / "docs" / "demo.png", dpi=110)
