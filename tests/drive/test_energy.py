"""Joules on the toy, worked out on paper, and where they show up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import small
import toy
from charts import bars, lines_of
from fedexperts import InputError, run
from fedexperts.contact.plan import Contact, ContactPlan
from fedexperts.drive.classes import CLASSES, DeviceClass, device_class
from fedexperts.drive.cluster import Pace
from fedexperts.drive.energy import Meter
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger, read
from fedexperts.protocol.ems_fl import EmsFl, Resplit
from fedexperts.protocol.link import Start
from fedexperts.report.progress import energy_figure
from fedexperts.runs.checkpoint import Packer, unpack
from fedexperts.setup.clients import device_classes

KIND = DeviceClass("toy", tx_power_W=10.0, rx_power_W=2.0, compute_J_per_FLOP=0.5, idle_power_W=0.25)
FAST = float("inf")


def play(
    path: Path,
    up_bps: float = 2.0 * toy.FILE_B,
    down_bps: float = 4.0 * toy.FILE_B,
    shares: float = 1.0,
    resplit: Resplit | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """One cluster with two devices of 2 and 4 samples; contacts at 0-10, 20-30 and 40-50 s."""
    data = {"a": [toy.samples(0, 8.0, n=2), toy.samples(0, 4.0, n=4)]}
    _, model, devices = toy.make(data)
    owned = {"a": frozenset({"expert:0"})}
    protocol = EmsFl(Start(model, ("a",), frozenset({"head"}), owned, cycles=2), resplit or Resplit())
    contacts = tuple(Contact("a", 20.0 * k, 20.0 * k + 10, up_bps, down_bps, uplink_share=shares) for k in range(3))
    ledger = Ledger(path / "ledger.jsonl")
    plan = ContactPlan(("a",), contacts, 60.0)
    Simulator(plan, toy.hosts(devices), Pace(1.0), 2, ledger, lambda model, cycle: {}, kinds={"a": KIND}, **options).run(
        protocol
    )
    ledger.close()
    return list(read(path / "ledger.jsonl"))


def joules(lines: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    return [tuple(line["per_device"]["a"].values()) for line in lines if line["event"] == "energy"]


def test_a_run_by_hand(tmp_path: Path) -> None:
    lines = play(tmp_path)
    # FLOPs are the gate's: 2·n·2·2 for n samples, forward only (it is frozen): 16 and 32, so 12 J a round in the mean
    # cycle 1, 0-10 s: 4 rounds; head up, a file of 92 B at 23 B/s: 4 s · 10 W; head down at 46 B/s: 2 s · 2 W; idle 10 − 6 s
    # cycle 2, 10-30 s: 10 rounds out of contact; expert up and down as before; 4 rounds in 26-30 s; idle 20 − 6 s
    # the rest, 30-50 s: expert up in the flush; idle 20 − 4 s
    assert joules(lines) == [(44.0, 48.0, 1.0), (44.0, 168.0, 3.5), (40.0, 0.0, 4.0)]
    assert [line["cycle"] for line in lines if line["event"] == "energy"] == [1, 2, 3]
    assert lines[-1]["energy_per_device"] == {"a": {"radio_J": 128.0, "compute_J": 216.0, "idle_J": 8.5}}


def test_a_lost_signal_costs_the_radio_until_then(tmp_path: Path) -> None:
    lines = play(tmp_path, closes_s={0: 6.5})  # 2.5 s into the first upload
    assert joules(lines)[0] == (25.0, 48.0 + 36.0, (10 - 2.5) * 0.25)  # and then 3 rounds of the standing order by 10 s


TRIAL = {
    "resplit": Resplit(lambda counts, number: {"a": frozenset({"expert:0"})}, every_cycles=1, trial_samples=4),
    "trial_B": lambda trial: 23 * trial.tokens // 2,
}
"""In the first contact, at 0 s: of the devices' 2 and 4 samples 23 and 46 B, at 23 B/s for 1 and 2 s, each on its own."""


def test_a_trial_pass_takes_the_time_and_the_joules_of_its_bytes(tmp_path: Path) -> None:
    """Of the contact's 10 s then 8 are left: 2 rounds, as head up and down take 6."""
    lines = play(tmp_path, **TRIAL)
    (trial,) = (line for line in lines if line["event"] == "trial")
    assert (trial["t_s"], trial["uplink_B"], trial["tokens"]) == (2.0, 69, 6)
    assert joules(lines)[0] == (15.0 + 44.0, 24.0, (10 - 1.5 - 6) * 0.25)


def test_a_trial_pass_that_is_cut_costs_the_radio_until_then(tmp_path: Path) -> None:
    lines = play(tmp_path, **TRIAL, closes_s={0: 1.5})  # and then 8 rounds of the standing order by 10 s
    assert joules(lines)[0] == ((1.0 + 1.5) / 2 * 10.0, 8 * 12.0, (10 - 1.25) * 0.25)
    assert not [line for line in lines if line["event"] == "trial" and line["t_s"] < 20]


def test_transfers_that_take_no_time_cost_no_radio_energy(tmp_path: Path) -> None:
    rows = joules(play(tmp_path, FAST, FAST))
    assert [radio_J for radio_J, _, _ in rows] == [0, 0, 0]
    assert sum(idle_J for _, _, idle_J in rows) == 50 * 0.25


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_devices_that_take_turns_pay_for_their_own_share_of_the_sending_time(share: float, tmp_path: Path) -> None:
    """The rate of a contact is that of a device with its turns; four of them on one sub-channel are not four transmitters."""
    lines = play(tmp_path, shares=share)
    assert joules(lines)[0] == (40.0 * share + 4.0, 48.0, (10 - 4 * share - 2) * 0.25)


def test_a_device_that_has_less_to_send_stops_earlier() -> None:
    meter = Meter(KIND, devices=2, tx_s=4.0 + 1.0)
    assert meter.read(10.0) == {"radio_J": 25.0, "compute_J": 0.0, "idle_J": (20 - 5) * 0.25 / 2}


def test_a_transfer_across_the_end_of_a_cycle_takes_idle_time_from_the_next_ones_too() -> None:
    meter = Meter(KIND, devices=1)
    idle_J = [meter.read(10.0)["idle_J"]]
    meter.rx_s += 8.0  # ended at 12 s, 6 s of it before the reading
    idle_J += [meter.read(12.0)["idle_J"], meter.read(20.0)["idle_J"]]
    assert idle_J == [2.5, 0.0, 0.5]
    assert meter.total_J["idle_J"] == (20 - 8) * 0.25


def test_a_meter_survives_a_checkpoint() -> None:
    meter, other = Meter(KIND, 3, 0.1, 0.2, 7), Meter(KIND, 3)
    meter.read(1 / 3)
    meter.tx_s += 0.7
    packer = Packer()
    vars(other).update(unpack(json.loads(json.dumps(packer.pack(meter.state()))), packer.tensors))
    assert other == meter
    assert other.read(2.0) == meter.read(2.0)


# ---- classes


@pytest.mark.parametrize("name", CLASSES)
def test_radio_and_idle_power_are_in_order(name: str) -> None:
    kind = CLASSES[name]
    assert kind.name == name
    assert kind.tx_power_W > kind.rx_power_W >= kind.idle_power_W > 0
    assert 1e-12 < kind.compute_J_per_FLOP < 1e-8


def test_an_override_changes_one_number_and_four_make_a_class() -> None:
    assert device_class("phone", tx_power_W=1.0) == replace(CLASSES["phone"], tx_power_W=1.0)
    four = {"tx_power_W": 1.0, "rx_power_W": 0.5, "compute_J_per_FLOP": 1e-9, "idle_power_W": 0.1}
    assert device_class("buoy", **four) == DeviceClass("buoy", 1.0, 0.5, 1e-9, 0.1)


CLUSTERS = small.document()["cluster"]


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"cluster": [{**CLUSTERS[0], "device": "toaster"}]}, "'toaster': unknown class; known are jetson, laptop, phone, s"),
        (
            {"device": {"phnoe": {"tx_power_W": 1.0}}},
            r"\[device.phnoe\]: is not complete, .*; add rx_power_W, compute",
        ),
        (
            {"device": {"satphone": {"load": "all"}}, "cluster": [{**CLUSTERS[0], "device": "satphone"}]},
            r"\[device.satphone\]: is not complete, .*; add tx_power_W, rx_power_W, compute_J_per_FLOP, idle_power_W",
        ),
        ({"device": {"satphone": {}}}, r"\[device.satphone\]: is not complete, "),
        ({"device": {"phone": {"tx_power_W": -1.0}}}, r"device.phone.tx_power_W = -1.0"),
        ({"device": {"phone": {"tx_power_kW": 1.0}}}, r"device.phone.tx_power_kW: unknown key"),
    ],
)
def test_bad_classes_are_told_before_anything_is_written(tables: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        run(small.scenario(**tables), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_cluster_has_its_class() -> None:
    cluster = [{**CLUSTERS[0], "device": "jetson"}, CLUSTERS[1]]
    kinds = device_classes(small.scenario(cluster=cluster, device={"phone": {"idle_power_W": 9.0}}))
    assert list(kinds.values()) == [CLASSES["jetson"], device_class("phone", idle_power_W=9.0)]


# ---- ledger, summary, report


def test_summary_and_report_take_the_mean_over_all_devices(tmp_path: Path) -> None:
    cluster = [{**CLUSTERS[0], "devices": 3, "device": "laptop"}, {**CLUSTERS[1], "devices": 1}]
    result = run(small.scenario(cluster=cluster, train={"cycles": 2}), tmp_path / "run").summary
    end = list(read(tmp_path / "run" / "ledger.jsonl"))[-1]
    laptop, phone = end["energy_per_device"].values()
    for use in ("radio_J", "compute_J", "idle_J"):
        assert result["energy_J_per_device"][use] == pytest.approx((3 * laptop[use] + phone[use]) / 4, rel=1e-4)
    assert result["energy_J_per_device"]["radio_J"] == 0  # round robin has no rate limit
    assert result["energy_J_per_device"]["idle_J"] == pytest.approx(3 * 120 * (3 * 10.5 + 0.05) / 4, rel=1e-4)
    spent = [point["energy_J_per_device"]["compute_J"] for point in result["history"]]
    assert spent == sorted(spent)
    assert spent[0] == 0 < spent[1]
    spending, uses = energy_figure({"ems-fl": result}).panels
    (line,), (bar,) = lines_of(spending), bars(uses)
    assert list(line.x) == pytest.approx(spent)
    assert list(bar.values.values()) == [joules for joules in result["energy_J_per_device"].values() if joules]
