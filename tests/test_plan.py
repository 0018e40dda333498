"""Plans: what follows from photons, from the shell, of a pilot scan and of a measured probe, and what is refused."""
import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

import ptycho_nb as pt
from ptycho_nb.cli import main
from ptycho_nb.config import InputError
from ptycho_nb.files import read_json
from ptycho_nb.physics.detector import Detector
from ptycho_nb.physics.probes import make_probe
from ptycho_nb.studies.prediction import light_of
from ptycho_nb.studies.spectra import contrast_spectrum, image_spectrum

BEAMLINE = pt.Geometry(energy_ev=8800, distance_m=1.0, detector_pixel_m=75e-6)
WANTED = {"resolution_m": 80e-9, "phase_rad": 0.3, "geometry": BEAMLINE}


def values(plan):
    return np.array([plan.photons_per_pattern.low, plan.photons_per_pattern.value, plan.photons_per_pattern.high])


def test_lengths_in_either_unit_are_the_same_plan():
    pixel_m = BEAMLINE.pixel_size_m(64)
    in_metres = pt.plan(**WANTED, step_m=8 * pixel_m, probe_m=24 * pixel_m, field_m=(100 * pixel_m, 160 * pixel_m))
    in_pixels = pt.plan(resolution_px=80e-9 / pixel_m, phase_rad=0.3, step_px=8, probe_px=24, field_px=(100, 160))
    np.testing.assert_allclose(values(in_metres), values(in_pixels), rtol=1e-6)
    assert in_metres.n_patterns == in_pixels.n_patterns == 14 * 21
    by_frc50 = pt.plan(frc50=pixel_m / 80e-9, phase_rad=0.3, step_px=8, probe_px=24)
    np.testing.assert_allclose(values(by_frc50), values(in_pixels), rtol=1e-6)


def test_back_from_photons_or_from_flux_and_time():
    there = pt.plan(resolution_px=3, absorption=0.2, flux_per_s=1e6)
    back = pt.plan(photons=there.photons_per_pattern.value, absorption=0.2, feature_px=3)
    assert back.frc50.value == pytest.approx(1 / 3, rel=0.02) and back.frc50.low < 1 / 3 < back.frc50.high
    timed = pt.plan(flux_per_s=1e6, exposure_s=there.exposure_s.value, absorption=0.2, feature_px=3)
    assert timed.photons_per_pattern.value == pytest.approx(there.photons_per_pattern.value)
    assert there.transmission == pytest.approx(0.9) and there.incident.value > there.photons_per_pattern.value
    longer = [pt.plan(photons=photons, absorption=0.2, feature_px=3).frc50.value for photons in (1e2, 1e3, 1e4, 1e8)]
    assert longer == sorted(longer) and longer[-1] == 1


def test_a_spectrum_in_larger_pixels_and_that_the_light_on_a_pixel_is_what_counts():
    image = pt.example_scan(n_patterns=10).truth
    spectrum = image_spectrum(image, "amplitude")
    larger = spectrum.enlarged(2.0)
    assert larger.at(np.array([0.2]))[0] == pytest.approx(spectrum.at(np.array([0.1]))[0] / 4)
    sampled = [pt.plan(resolution_px=4, sample=image, step_px=step).photons_per_px.value for step in (4, 6)]
    assert sampled[0] == pytest.approx(sampled[1], rel=0.2)  # what counts is the light on a pixel


def test_a_pilot_scan_and_the_probe_of_a_scan_with_its_detector():
    scan = pt.simulate_halves(pt.SimulationConfig(nphotons=1e5, object_size_px=224, probe_kind="defocused", n_train=1,
                                                  scan_kind="jittered", n_test=80, seed=5))[1]
    good = np.ones((64, 64), bool)
    good[:32] = False
    whole = pt.plan(resolution_px=4, phase_rad=0.3, probe=scan, overlap=0.7)
    blocked = pt.plan(resolution_px=4, phase_rad=0.3, probe=replace(scan, detector=Detector(good)), overlap=0.7)
    more = blocked.photons_per_pattern.value / whole.photons_per_pattern.value
    assert 1.3 < more < 2.1  # less than 2, since with more photons fewer pixels are dark
    pilot = pt.plan(resolution_px=4, sample=scan, part="amplitude", probe=scan, overlap=0.7)
    known = pt.plan(resolution_px=4, sample=scan.truth[144:-32, 32:-32], part="amplitude", probe=scan, overlap=0.7)
    assert "pilot scan" in pilot.assumption
    assert 0.1 < pilot.photons_per_pattern.value / known.photons_per_pattern.value < 10
    assert pilot.photons_per_pattern.high / pilot.photons_per_pattern.low > 20, "continued spectra are less sure"


def test_modes_of_a_probe_and_a_spectrum_as_numbers():
    probe = make_probe("defocused", 64)
    both = pt.plan(resolution_px=3, phase_rad=0.3, probe=np.stack([probe, probe]), step_px=8)
    one = pt.plan(resolution_px=3, phase_rad=0.3, probe=probe, step_px=8)
    np.testing.assert_allclose(values(both), values(one), rtol=1e-6)
    model = contrast_spectrum(3, phase_rad=0.3)
    told = pt.plan(resolution_px=3, sample={"cycles_per_px": model.cycles_per_px, "power": model.power}, step_px=8)
    assert told.part == "phase" and told.photons_per_pattern.high < one.photons_per_pattern.high


def test_light_is_conserved_and_even_where_probes_overlap():
    for step_px in (1.5, 6.0, 20.0):
        light = light_of(make_probe("disk", 64), step_px).weight
        assert light.sum() == pytest.approx(round(light.shape[0] / step_px) ** 2, rel=0.15) and light.min() >= 0
    spread = [np.std(light_of(make_probe("disk", 64), step).weight * step**2) for step in (3, 12)]
    assert spread[0] < spread[1]


def test_where_it_does_not_know_it_says_so():
    assert "share no light" in pt.plan(resolution_px=3, phase_rad=0.3, overlap=0.0).sentence
    assert "its own twin" in pt.plan(resolution_px=3, phase_rad=0.3, overlap=0.2, probe="disk").sentence
    assert "out of reach" in pt.plan(resolution_px=1, phase_rad=1e-9).sentence
    assert "nothing is resolved" in pt.plan(photons=1e-3, phase_rad=0.1, feature_px=3).sentence


def test_a_dose_in_gray_by_a_coefficient_and_by_a_formula(monkeypatch):
    plain = pt.plan(**WANTED, material=100.0)
    expected = plain.photons_per_m2.value * 8800 * 1.602177e-19 * 10.0
    assert plain.dose_gray.value == pytest.approx(expected, rel=1e-5)
    tables = {"chemparse": lambda formula: {formula: 2.0}, "atomic_mass": lambda name: 28.0,
              "mu_elam": lambda name, energy, kind: 100.0 if kind == "photo" else 1e9}
    monkeypatch.setitem(sys.modules, "xraydb", types.SimpleNamespace(**tables))
    assert pt.plan(**WANTED, material="Si").dose_gray.value == pytest.approx(expected, rel=1e-5)
    monkeypatch.setitem(sys.modules, "xraydb", None)
    with pytest.raises(InputError, match=r"ptycho_nb\[gray\]"):
        pt.plan(**WANTED, material="Si")
    electrons = pt.Geometry(energy_ev=3e5, particle="electron", object_pixel_m=2e-11)
    planned = pt.plan(resolution_px=3, phase_rad=0.1, geometry=electrons, material=1.0)
    assert planned.dose_gray is None and any("photons only" in note for note in planned.notes)


GOOD = {"resolution_px": 3}
WRONG = [
    {}, {"resolution_px": 0.5}, {"resolution_px": -1}, {"frc50": 1.5}, GOOD | {"resolution_m": 1e-8},
    GOOD | {"frc50": 0.3}, GOOD | {"photons": 1e5}, {"photons": -1}, {"resolution_px": float("nan")},
    GOOD | {"overlap": 1.0}, GOOD | {"overlap": 0.5, "step_px": 4}, GOOD | {"step_px": 0}, GOOD | {"probe": "disc"},
    GOOD | {"N": 0}, GOOD | {"probe": np.zeros((8, 8))}, GOOD | {"probe_px": 60},
    GOOD | {"part": "colour"}, GOOD | {"material": 5.0}, GOOD | {"field_m": 1e-6},
    GOOD | {"sample": np.ones((32, 32), complex)}]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_wish_is_refused(wrong):
    with pytest.raises(InputError):
        pt.plan(**{"phase_rad": 0.3} | wrong)
    with pytest.raises(InputError):
        pt.plan(resolution_px=3)


def test_from_the_shell(tmp_path, capsys):
    words = ["plan", "--resolution", "80nm", "--phase-rad", "0.3", "--energy-kev", "8.8", "--distance-m", "1",
             "--detector-pixel-um", "75", "--field", "5umx10um", "--flux-per-s", "1e7", "--material", "100"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    said, stored = capsys.readouterr().out, read_json(tmp_path / "plan.json")
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert stored["sentence"] in said and "patterns:" in said and drawn == {"curve.png", "curve.pdf"}
    assert main([*words, "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert given == stored and given["n_patterns"] > 100 and len(given["dose_gray"]) == 3
    direct = pt.plan(**WANTED, field_m=(5e-6, 10e-6), flux_per_s=1e7, material=100.0)
    assert given["photons_per_pattern"] == pytest.approx(list(values(direct)[[1, 0, 2]]))
