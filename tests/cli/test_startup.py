"""What each command imports before it does its work: help is quick, and who needs no model loads no torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

import small
from fedexperts import Scenario, run
from fedexperts.cli.lazy import PANELS

HEAVY = ("torch", "transformers", "scipy", "sklearn", "matplotlib", "pydantic", "numpy", "pyarrow", "sgp4")


def loaded(*words: str) -> set[str]:
    """Which heavy packages a command line has loaded when it ends."""
    code = (
        "import sys\n"
        "from fedexperts.cli.main import main\n"
        f"sys.argv = ['fedexperts', *{words!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("loaded:", 1)[1].split())


def test_help_loads_nothing_heavy_and_names_every_command_in_its_group() -> None:
    assert loaded("--help") == set()
    done = subprocess.run([sys.executable, "-m", "fedexperts", "--help"], capture_output=True, text=True, check=True)
    for panel, names in PANELS.items():
        assert f"─ {panel} " in done.stdout
        assert all(f"│ {name} " in done.stdout for name in names)


PLAN = """
name = "bare"
[plan]
kind = "round-robin"
[[cluster]]
name = "lisbon"
"""


def test_commands_that_need_no_model_load_no_torch(tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text(PLAN)
    assert loaded("plan", str(tmp_path / "bare.toml")) <= {"numpy", "scipy", "pydantic", "sgp4"}
    assert loaded("report", "--help") <= {"numpy", "pydantic"}


def test_a_comparison_that_has_ended_is_collected_without_torch(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(tomli_w.dumps(small.document(train={"cycles": 1})))
    out = tmp_path / "out"
    for protocol in ("sync", "ems-fl"):
        run(Scenario.load(tmp_path / "small.toml"), out / f"{protocol}-seed-3", protocol=protocol)
    words = ("compare", str(tmp_path / "small.toml"), "--protocol", "sync,ems-fl", "--out", str(out), "--resume")
    assert loaded(*words) <= {"numpy", "pydantic", "matplotlib"}
    assert "ems-fl" in (out / "report.html").read_text()


def test_explaining_a_key_loads_the_tables_alone() -> None:
    assert loaded("explain", "train.lr_expert") <= {"numpy", "pydantic"}
    assert loaded("explain", "radio.carrier_Hz") <= {"numpy", "pydantic", "scipy", "sgp4"}


WITH_MODEL = """
name = "with-model"
[plan]
kind = "round-robin"
[model.config]
model_type = "%s"
num_hidden_layers = 2
num_experts_per_tok = 2
%s
[train]
cycles = 3
[[cluster]]
name = "lisbon"
data = "digits:plain"
device = "%s"
"""
LIGHT = {"numpy", "scipy", "pydantic", "sgp4"}


@pytest.mark.parametrize("protocol", ["sync", "ems-fl", "ems-fl-enhanced", "aligned"])
def test_sizes_of_a_model_come_from_its_config_alone(protocol: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(WITH_MODEL % ("mixtral", "", "phone"))
    assert loaded("plan", str(tmp_path / "s.toml"), "--protocol", protocol) <= LIGHT
    example = Path(__file__).parents[2] / "examples" / "llama3-8b-x3.json"
    assert loaded("inspect", str(example)) <= {"numpy", "pydantic"}


@pytest.mark.slow
def test_a_model_that_arithmetic_does_not_know_is_asked_of_transformers(tmp_path: Path) -> None:
    rope = 'rope_parameters = { rope_type = "default", rope_theta = 1e4, of_mine = "x" }'
    (tmp_path / "s.toml").write_text(WITH_MODEL % ("mixtral", rope, "phone"))
    assert {"torch", "transformers"} <= loaded("plan", str(tmp_path / "s.toml"))


def test_cheap_errors_come_before_anything_heavy(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(WITH_MODEL % ("mixtral", "", "fridge"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for command in ("plan", "check", "run"):
        assert loaded(command, str(tmp_path / "s.toml")) <= LIGHT | {"huggingface_hub"}
    assert loaded("run", str(tmp_path / "s.toml"), "--out", str(tmp_path / "full")) <= LIGHT
