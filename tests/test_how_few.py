"""How few photons: the answer from the shell, of a scan without a known truth, and what is refused."""
from dataclasses import replace

import numpy as np
import pytest

from ptycho_nb.cli import main
from ptycho_nb.config import InputError, SimulationConfig
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.files import read_json
from ptycho_nb.physics.detector import Detector
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.studies.how_few import how_few
from ptycho_nb.studies.thinning import deal, photon_unit

CONFIG = SimulationConfig(nphotons=1e5, object_size_px=192, probe_kind="defocused", n_train=1, n_test=80, seed=5)
FEW = (0.5, 0.02)


@pytest.fixture(scope="module")
def scan():
    return simulate_halves(CONFIG)[1]


@pytest.fixture(scope="module")
def answer(scan):
    return how_few(scan, resolution_px=4, methods=["no_network"], shares=FEW)


def test_the_same_seed_gives_the_same_answer(scan, answer):
    again = how_few(scan, resolution_px=4, methods=["no_network"], shares=FEW)
    other = how_few(scan, resolution_px=4, methods=["no_network"], shares=FEW, seed=1)
    assert again.sentence == answer.sentence and again.curve == answer.curve
    assert other.curve != answer.curve


def test_a_target_out_of_reach_and_one_of_no_effort_are_said(scan, answer):
    fine = how_few(scan, frc50=1.0, methods=["no_network"], shares=FEW, full=estimate(scan))
    coarse = how_few(scan, resolution_px=30, methods=["no_network"], shares=FEW, full=estimate(scan))
    assert "not even at the measured dose" in fine.sentence
    assert "already under" in coarse.sentence and coarse.answers["no_network"].share == 0


def test_a_result_that_is_not_to_be_believed_gives_no_answer(scan):
    wrong = replace(estimate(scan), object=2 * estimate(scan).object)
    assert "cannot be told" in how_few(scan, methods=["no_network"], shares=(0.5,), full=wrong).sentence


def test_too_small_a_scan_and_one_judge_give_no_answer(scan):
    y, x = scan.positions_px.T
    few = scan.subset(np.flatnonzero((abs(y - y.mean()) < 10) & (abs(x - x.mean()) < 10)))
    answer = how_few(few, methods=["no_network"], shares=(0.5,))
    assert "cannot be told: the positions span" in answer.sentence
    assert all(np.isfinite(row["residuals"]) for row in answer.curve if not row["extrapolated"])


def test_a_measured_scan_has_its_probe_refined_at_each_dose(scan):
    measured = replace(scan, metadata={}, object=None)
    answer = how_few(measured, resolution_px=4, methods=["no_network"], shares=FEW, full=estimate(scan))
    assert answer.settings["probe"] == "refined" and any("refined at each dose" in note for note in answer.notes)
    assert [row["share"] for row in answer.rows() if not row["extrapolated"]] == [0.02, 0.5]


def test_the_background_is_thinned_with_the_photons(scan):
    background = Detector(np.ones((scan.N, scan.N), bool), 3.0)
    share, first, second = list(deal(replace(scan, detector=background), FEW, 0))[1]
    assert share == 0.02 and np.isclose(first.detector.background[0, 0], 0.06, rtol=1e-5)
    assert np.allclose(second.detector.background, first.detector.background, rtol=1e-5)
    counts = [np.rint(part.diff3d**2) for part in (first, second)]
    assert np.isclose(counts[0].sum() / np.sum(scan.diff3d**2, dtype=float), 0.02, rtol=0.02)
    assert abs(np.cov(counts[0].ravel(), counts[1].ravel())[0, 1] / np.mean(counts[0]) ** 2) < 100


@pytest.mark.parametrize("spoil", [lambda n: np.maximum(n - 0.31, 0), lambda n: n * np.linspace(0.8, 1.2, n.shape[-1])])
def test_preprocessed_counts_are_refused(scan, spoil):
    with pytest.raises(InputError, match=r"multiples of no number.*as the detector wrote them"):
        how_few(replace(scan, diff3d=np.sqrt(spoil(scan.diff3d**2))), methods=["no_network"])


def test_a_gain_is_found_in_few_and_in_many_counts():
    rng = np.random.default_rng(0)
    for mean, gain in ((0.1, 0.4), (2.0, 7.5), (30.0, 2.0)):
        counts = rng.poisson(mean, 50_000).astype(float)
        assert np.isclose(photon_unit(gain * counts[counts > 0]), gain, rtol=1e-3), (mean, gain)
        assert photon_unit(counts[counts > 0]) == 1


@pytest.mark.parametrize("wrong", [
    {"resolution_px": 0.5}, {"frc50": 0.0}, {"resolution_px": 2, "frc50": 0.5}, {"deals": 0}, {"methods": ["magic"]},
    {"part": "colour"}, {"shares": (0.5, 0.4)}])
def test_a_wrong_wish_is_refused(scan, wrong):
    with pytest.raises(InputError):
        how_few(scan, **{"methods": ["no_network"], "full": estimate(scan)} | wrong)


def test_from_the_shell(scan, tmp_path, capsys):
    path = scan.save(tmp_path / "scan.npz")
    words = ["how-few", str(path), "--out", str(tmp_path / "out"), "--resolution-px", "4", "--methods", "no_network"]
    assert main(words) == 0
    said = capsys.readouterr().out
    stored = read_json(tmp_path / "out" / "how_few.json")
    assert stored["sentence"] in said and "how_few.md" in said
    assert stored["answers"]["no_network"]["sentence"] in stored["sentence"].replace("Without", "without")
    drawn = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert drawn == {"curve.png", "curve.pdf", "images.png", "images.pdf"}
    with np.load(tmp_path / "out" / "how_few.npz", allow_pickle=False) as images:
        assert "no_network_0.5" in images.files and images["no_network_1"].dtype == np.complex64
    assert main(["how-few", str(path), "--out", str(tmp_path / "out"), "--methods", "magic"]) == 2
