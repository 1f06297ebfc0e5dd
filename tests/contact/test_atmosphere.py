"""ITU-R's models: its own validation examples, our 1/sin law, and a plan in the rain."""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec

import numpy as np
import pytest

from fedexperts.contact.atmosphere import exact_loss_dB, slant_loss_dB
from fedexperts.contact.budget import atmospheric_loss_dB
from fedexperts.contact.orbit import circular
from fedexperts.contact.presets import from_preset
from fedexperts.contact.radio import path_loss_dB, uplink_bps
from fedexperts.contact.schedule import Station, best_passes, orbital_plan
from fedexperts.contact.site import Site
from fedexperts.contact.surroundings import ZENITH_DB, ZENITH_GHZ, RadioError
from fedexperts.errors import InputError

with_itu = pytest.mark.skipif(find_spec("itur") is None, reason="needs the extra itu (160 MB): pip install -e '.[itu]'")
LISBON = Site("lisbon", 38.72, -9.14)
NAIROBI = Site("nairobi", -1.29, 36.82, altitude_m=1795)
HIGH_DEG = np.linspace(20, 90, 71)


# ITU-R Study Group 3's validation examples for P.618-13, as ITU-Rpy's repository carries them (test_data/618, A_total):
# latitude, longitude, height in km, GHz, elevation, tilt, percent; gases, clouds (both at 1 % where percent is less, as P.618
# sums them) and rain in dB.
VALIDATION = [
    (51.5, -0.14, 0.031382984, 14.25, 31.07699124, 0, 1, 0.226874038, 0.455169824, 0.495316047),
    (41.9, 12.49, 0.046122988, 14.25, 40.232036, 0, 1, 0.189480858, 0.263385101, 0.623265148),
    (33.94, 18.43, 0, 14.25, 46.35969261, 0, 0.1, 0.176011463, 0.187794088, 1.913381063),
    (51.5, -0.14, 0.031382984, 29, 31.07699124, 0, 0.01, 0.837659939, 1.772469073, 23.44440963),
    (22.9, -43.23, 0, 29, 22.27833468, 0, 0.1, 1.627537069, 2.109942403, 29.31904827),
    (25.78, -80.22, 0.00861728, 29, 52.67898486, 0, 0.001, 0.900282957, 2.076228137, 93.39566399),
    (28.717, 77.3, 0.209383699, 14.25, 48.24117054, 90, 0.01, 0.28572246, 0.685921884, 14.8721781),
    (3.133, 101.7, 0.051251456, 29, 85.80459566, 90, 1, 0.778114483, 2.422581525, 10.21312531),
    (9.05, 38.7, 2.539861878, 29, 20.14335809, 90, 0.1, 0.704136355, 2.560951657, 19.23911917),
]


@with_itu
@pytest.mark.parametrize("row", VALIDATION)
def test_validation_examples_of_the_itu(row):
    latitude, longitude, height_km, carrier_GHz, elevation_deg, tilt_deg, percent, *parts_dB = row
    site = Site("station", latitude, longitude, altitude_m=height_km * 1e3)
    loss_dB = exact_loss_dB(np.array(elevation_deg), carrier_GHz * 1e9, site, percent, tilt_deg)
    assert loss_dB == pytest.approx(sum(parts_dB), rel=5e-4)


@with_itu
@pytest.mark.parametrize("carrier_Hz", [2e9, 20e9, 30e9])
def test_without_rain_the_loss_follows_our_law(carrier_Hz):
    loss_dB = slant_loss_dB(HIGH_DEG, carrier_Hz, LISBON, 10.0)
    assert np.allclose(loss_dB, atmospheric_loss_dB(HIGH_DEG, loss_dB[-1]), rtol=1e-6)


@with_itu
def test_with_rain_the_loss_grows_more_slowly_towards_the_horizon():
    """The law would take 2.9 times the zenith's at 20°; with rain for 1 % of the year it is 2.1 times."""
    loss_dB = slant_loss_dB(HIGH_DEG, 30e9, LISBON, 1.0)
    assert loss_dB[0] / loss_dB[-1] == pytest.approx(2.15, abs=0.05)
    law_dB = atmospheric_loss_dB(HIGH_DEG, loss_dB[-1])
    assert np.all(np.diff(loss_dB[HIGH_DEG <= 85]) < 0)  # P.618's rain turns up a little at the zenith itself
    assert np.all(loss_dB <= 1.01 * law_dB)
    assert np.all(loss_dB[HIGH_DEG >= 60] > 0.95 * law_dB[HIGH_DEG >= 60])


@with_itu
def test_interpolation_over_elevation():
    elevation_deg = np.linspace(5, 89.9, 400)
    for percent, within in ((1.0, 0.005), (0.01, 0.02)):
        exact_dB = exact_loss_dB(elevation_deg, 30e9, LISBON, percent)
        assert np.allclose(slant_loss_dB(elevation_deg, 30e9, LISBON, percent), exact_dB, rtol=within)
    assert slant_loss_dB(0.0, 30e9, LISBON, 1.0) == slant_loss_dB(5.0, 30e9, LISBON, 1.0)


@with_itu
def test_our_table_of_zenith_losses_against_p_676():
    import itur

    air = {"rho": 7.5, "P": 1013.25, "T": 288.15, "h": 0.0}  # mean global reference atmosphere at sea level
    zenith_dB = itur.gaseous_attenuation_slant_path(ZENITH_GHZ, 89.9, **air, mode="approx").value
    presets = np.isin(ZENITH_GHZ, [2, 4, 20, 30])
    assert np.allclose(ZENITH_DB[presets], zenith_dB[presets], atol=0.022)
    assert np.all(ZENITH_DB - zenith_dB > -0.02)
    assert np.max(ZENITH_DB - zenith_dB) == pytest.approx(0.18, abs=0.01)
    assert ZENITH_GHZ[np.argmax(ZENITH_DB - zenith_dB)] == 25


@with_itu
def test_more_loss_for_a_smaller_share_of_the_year_and_in_the_tropics():
    losses_dB = [float(slant_loss_dB(30.0, 30e9, LISBON, percent)) for percent in (50, 10, 1, 0.1, 0.01)]
    assert losses_dB == sorted(losses_dB)
    assert slant_loss_dB(30.0, 30e9, replace(NAIROBI, altitude_m=0), 0.1) > slant_loss_dB(30.0, 30e9, NAIROBI, 0.1)
    assert slant_loss_dB(30.0, 2e9, LISBON, 0.01) < 0.5  # S band hardly notices


@with_itu
def test_a_plan_where_it_rains():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    stations, satellites = [Station(LISBON, 1), Station(NAIROBI, 1)], [circular(600, 53, epoch=start)]
    clear, rain = (from_preset("ka-terminal", itu_exceeded_percent=p) for p in (50.0, 0.1))
    dry, wet = (orbital_plan(stations, satellites, radio, start, 86400.0) for radio in (clear, rain))
    assert [c.start_s for c in dry.contacts] == [c.start_s for c in wet.contacts]
    shares = [w.uplink_bps / d.uplink_bps for d, w in zip(dry.contacts, wet.contacts, strict=True)]
    assert max(shares) < 0.6
    assert all(w.downlink_bps < d.downlink_bps for d, w in zip(dry.contacts, wet.contacts, strict=True))
    snr_dB = [best_passes(p, stations, satellites, r, start)[0]["snr_dB"][60] for p, r in ((dry, clear), (wet, rain))]
    assert snr_dB[0] > snr_dB[1] + 5


@with_itu
@pytest.mark.parametrize(
    ("carrier_Hz", "site", "words"),
    [
        (0.5e9, LISBON, r"carrier_Hz = 5e\+08: ITU-R P.618 has 1e9 to 5.5e10"),
        (60e9, LISBON, r"carrier_Hz = 6e\+10"),
        (30e9, replace(LISBON, altitude_m=2e4), "altitude_m = 20000; they end at 10 km"),
        (30e9, Site("pole", -90, 0), "site 'pole': ITU-R's models have no loss at -90, 0"),
    ],
)
def test_where_the_models_end(carrier_Hz, site, words):
    with pytest.raises(InputError, match=words):
        slant_loss_dB(30.0, carrier_Hz, site, 1.0)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "itur", None)
    radio = from_preset("ka-terminal", itu_exceeded_percent=1.5)
    with pytest.raises(InputError, match=r"radio\.itu_exceeded_percent = 1\.5: needs .* pip install 'fedexperts\[itu\]'"):
        uplink_bps(radio, 30.0, 1e6, site=Site("nowhere seen before", 1.5, 2.5))


def test_the_models_need_a_place():
    with pytest.raises(RadioError, match=r"radio\.itu_exceeded_percent = 1: needs a site"):
        path_loss_dB(from_preset("ka-terminal", itu_exceeded_percent=1.0), 30.0, 1e6, 30e9)
