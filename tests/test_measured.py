"""Measured scans with one fault each: the ladder finds it and says it."""
import warnings
from dataclasses import replace

import numpy as np
import pytest

import ptycho_nb as pt
from ptycho_nb.physics.detector import Detector
from ptycho_nb.physics.forward import Layout, scan_amplitudes
from ptycho_nb.physics.noise import observe_poisson
from ptycho_nb.physics.probes import estimated_probe
from ptycho_nb.solvers import part
from ptycho_nb.solvers.climb import _spread
from ptycho_nb.solvers.estimate import as_estimated
from ptycho_nb.solvers.ladder import Climb
from ptycho_nb.solvers.light_rungs import with_blurred_light
from ptycho_nb.solvers.likelihood import scan_gradient
from ptycho_nb.solvers.result import load_reconstructions, save_reconstructions
from ptycho_nb.solvers.rungs import refocused, suspicious_pixels, useless_patterns


def measured(exact, counts, **changes):
    """A scan of which nothing says that it was simulated."""
    return replace(exact, diff3d=np.sqrt(counts).astype(np.float32), metadata={}, object=None, source="scan", **changes)


@pytest.fixture(scope="module")
def exact():
    config = pt.SimulationConfig(nphotons=3e5, object_size_px=184, n_train=16, n_test=120, probe_kind="defocused",
                                 object_kind="siemens_star", object_phase=True, seed=5)
    return pt.simulate_halves(config)[1]


def quiet(data, **options):
    """The estimate, and what it warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = pt.estimate(data, **options)
    return result, " ".join(str(warning.message) for warning in said)


def ssim(result, exact):
    return pt.compare(result, exact.truth)["amplitude"]["ssim"]


def kept(result):
    return {rung["name"] for rung in result.info["rungs"] if rung["kept"]}


@pytest.fixture(scope="module")
def sound(exact):
    return quiet(measured(exact, exact.diff3d.astype(float) ** 2))


def test_nothing_is_changed_where_nothing_is_wrong(exact, sound):
    result, said = sound
    assert not said and not kept(result) & {"pixels", "orientation", "background", "modes", "focus"}
    assert result.info["goodness"]["ratio"] < 1.3 and "agree" in result.info["verdict"]
    assert ssim(result, exact) > ssim(pt.estimate(exact), exact) - 0.002


def test_a_gap_and_hot_pixels_are_found_and_named(exact, sound):
    counts = exact.diff3d.astype(float) ** 2
    counts[:, :, 37:40] = 0
    counts[:, 11, 20] = 9000
    result, said = quiet(measured(exact, counts))
    assert "pixels" in kept(result) and "dead" in said and "1 hot" in said
    assert not result.detector.good[11, 20] and not result.detector.good[30:34, 37:40].any()
    assert ssim(result, exact) > ssim(sound[0], exact) - 0.03


def test_dark_and_bright_patterns_are_left_out_and_named(exact, sound):
    counts = exact.diff3d.astype(float) ** 2
    counts[12], counts[90] = 0, 50 * counts[90]
    result, said = quiet(measured(exact, counts))
    assert result.info["left_out"] == [12, 90] and "patterns 12, 90" in said
    assert ssim(result, exact) > ssim(sound[0], exact) - 0.02


def test_a_background_is_added_to_the_rate(exact):
    counts = exact.diff3d.astype(float) ** 2 + observe_poisson(np.full(exact.diff3d.shape, 4.0), 3) ** 2
    data = measured(exact, counts)
    result, said = quiet(data)
    assert "background" in kept(result) and "background" in said
    assert abs(result.detector.background.mean() - 4) < 0.8
    assert ssim(result, exact) > ssim(pt.estimate(data, "joint"), exact) + 0.03


def test_a_second_mode_is_found(exact):
    mode = np.roll(exact.probe, 2, 0) - np.roll(exact.probe, -2, 0)
    mode *= 0.6 * np.linalg.norm(exact.probe) / np.linalg.norm(mode)
    layout = Layout.on_canvas(exact.positions_px, exact.N, exact.object.shape)
    modes = np.stack([exact.probe, mode]).astype(np.complex64)
    rate = np.square(scan_amplitudes(exact.object, modes, layout), dtype=float)
    rate *= 3e5 / rate.sum(axis=(1, 2)).mean()
    data = measured(exact, observe_poisson(rate, 4).astype(float) ** 2)
    result, _ = quiet(data)
    one, _ = quiet(data, model="joint")
    assert "modes" in kept(result) and (result.detector is None or not result.detector.background.any())
    assert not kept(result) & {"affine", "drift", "light"}  # which can explain a little of it
    shares = np.sum(np.abs(result.modes) ** 2, axis=(1, 2))
    assert abs(shares[1] / shares.sum() - 0.36 / 1.36) < 0.06 and shares[2:].sum() < 0.03 * shares.sum()
    assert abs(np.vdot(*result.modes[:2])) < 1e-3 * shares[0]
    assert ssim(result, exact) > ssim(one, exact) + 0.01


def test_positions_counted_the_other_way_are_turned_back(exact, sound):
    turned = exact.positions_px.max(axis=0) + exact.positions_px.min(axis=0) - exact.positions_px
    data = measured(exact, exact.diff3d.astype(float) ** 2, positions_px=turned)
    result, said = quiet(data)
    assert "orientation" in kept(result) and "half a turn" in said
    np.testing.assert_allclose(result.positions_px, exact.positions_px)


def test_the_probe_is_found_where_the_file_has_none(exact):
    counts = exact.diff3d.astype(float) ** 2
    data = replace(measured(exact, counts, probe=estimated_probe(exact.diff3d)), metadata={"probe": "estimated"})
    swapped = replace(data, positions_px=data.positions_px[:, ::-1].copy())
    for scan, found in ((data, {"focus"}), (swapped, {"orientation"})):
        result, said = quiet(scan)
        assert found <= kept(result) and "agree" in result.info["verdict"]
        if scan is data:
            assert ssim(result, exact) > 0.9
    assert "x and y exchanged" in said


@pytest.mark.long  # the chapter of position rungs finds both together
@pytest.mark.parametrize("name", ["affine", "drift"])
def test_positions_that_are_turned_or_drift_are_found(exact, name):
    middle = exact.positions_px.mean(axis=0)
    turned = (exact.positions_px - middle) @ np.array([[1.01, 0.03], [-0.03, 1.01]]) + middle
    drifted = exact.positions_px + 2 * np.linspace(-1, 1, exact.n_patterns)[:, None] * [1, -0.5]
    wrong = turned if name == "affine" else drifted
    faulty = measured(exact, exact.diff3d.astype(float) ** 2, positions_px=wrong)
    result, said = quiet(faulty, iterations=25)
    error, given = (positions - exact.positions_px for positions in (result.positions_px, wrong))
    assert name in kept(result) and "positions" in said
    assert np.std(error, axis=0).max() < 0.4 * np.std(given, axis=0).max()
    assert ssim(result, exact) > ssim(pt.estimate(faulty, "joint", iterations=25), exact) + 0.01


@pytest.mark.long
def test_light_that_flickers_is_found(exact):
    light = np.random.default_rng(8).uniform(0.5, 1.5, exact.n_patterns)
    counts = observe_poisson(np.square(exact.diff3d, dtype=float) * light[:, None, None], 9).astype(float) ** 2
    data = measured(exact, counts)
    result, said = quiet(data, iterations=25)
    assert "light" in kept(result) and "light that changes" in said
    assert np.corrcoef(result.light, light)[0, 1] > 0.95
    assert ssim(result, exact) > ssim(pt.estimate(data, "joint", iterations=25), exact)
    assert as_estimated(data, result).subset(np.arange(3)).light.tolist() == result.light[:3].tolist()


def test_values_that_mark_unreadable_or_saturated_pixels(exact, tmp_path):
    arrays = exact.to_arrays() | {"diff3d": exact.diff3d.copy(), "metadata": np.array("{}")}
    arrays["diff3d"][:, 20:22, 3] = -1
    arrays["diff3d"][::5, 9, 9] = -1
    arrays["diff3d"][::4, 40, 30:33] = np.sqrt(2.0**32 - 1)
    np.savez(tmp_path / "marked.npz", **arrays)
    data = pt.load_data(tmp_path / "marked.npz")
    assert np.argwhere(~data.detector.good).tolist() == [[9, 9], [20, 3], [21, 3]]
    suspects = suspicious_pixels(data)
    assert suspects["unreadable"].sum() == 3 and not len(useless_patterns(data))
    end = np.sqrt(np.rint(0.3 * exact.diff3d.max() ** 2))
    assert suspicious_pixels(replace(exact, diff3d=np.minimum(exact.diff3d, end)))["saturated"].any()
    assert not suspicious_pixels(exact)["saturated"].any()


def test_the_focus_of_a_guess_is_found_where_photons_are_few(exact):
    few = observe_poisson(np.square(exact.diff3d, dtype=float) * (2e4 / 3e5), 6).astype(float) ** 2
    wrong = refocused(exact.probe, 4.0)
    result, _ = quiet(measured(exact, few, probe=wrong))
    known, _ = quiet(measured(exact, few))
    assert "focus" in kept(result) and ssim(result, exact) > ssim(known, exact) - 0.03
    assert ssim(known, exact) > ssim(pt.estimate(measured(exact, few), "fixed"), exact) - 0.01


def test_a_diagnosis_names_the_fault(exact, tmp_path):
    counts = exact.diff3d.astype(float) ** 2
    counts[:, 36:40], counts[[5, 6]] = 0, 0
    report = pt.diagnose(measured(exact, counts).save(tmp_path / "faulty.npz"), tmp_path / "report")
    told = " ".join(finding["what"] for finding in report["findings"])
    assert "dead" in told and "Patterns of no use: 5, 6" in told
    assert "nothing stands against" not in report["verdict"] and report["sections"]["measurement"]["ratio"] < 1.5


def test_what_cannot_be_a_scan_is_refused(exact):
    data = measured(exact, exact.diff3d.astype(float) ** 2)
    with pytest.raises(pt.InputError, match=r"120 patterns within .* px.*micrometres"):
        pt.estimate(replace(data, positions_px=data.positions_px * 0.03))
    lost = data.positions_px.copy()
    lost[7] = 9e4, -3e4
    with pytest.raises(pt.InputError, match=r"pattern 7 at .*Leave them out"):
        pt.estimate(replace(data, positions_px=lost))
    with pytest.raises(pt.InputError, match="model"):
        pt.estimate(data, "automatic")


def test_pixels_that_are_not_numbers_are_a_mask(exact, tmp_path):
    arrays = exact.to_arrays() | {"diff3d": exact.diff3d.copy(), "metadata": np.array("{}")}
    arrays["diff3d"][:, 20:22] = np.nan
    np.savez(tmp_path / "gaps.npz", **arrays)
    data = pt.load_data(tmp_path / "gaps.npz")
    assert not data.detector.good[20:22].any() and data.detector.good.sum() == 62 * 64
    with pytest.raises(pt.InputError, match=r"first at 0.*no zeros.*mask"):
        replace(exact, diff3d=arrays["diff3d"])
    again = pt.load_data(data.save(tmp_path / "again.npz"))
    assert again.checksums() == data.checksums()


def test_modes_and_detector_are_kept_with_a_result(exact, tmp_path):
    image = pt.estimate(exact, iterations=2)
    image = replace(image, weaker_modes=0.1 * image.probe[None], detector=Detector(np.eye(64) == 0, 0.5),
                    light=np.linspace(1, 0.5, len(image.positions_px)))
    back = load_reconstructions(save_reconstructions(tmp_path / "reconstruction.npz", no_network=image))["no_network"]
    np.testing.assert_array_equal(back.modes, image.modes)
    np.testing.assert_array_equal(back.detector.good, image.detector.good)
    assert back.detector.background[0, 0] == 0.5
    np.testing.assert_array_equal(back.light, image.light)


@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize("n_modes", [1, 3])
def test_the_gradient_of_modes_background_mask_and_light(fractional, n_modes):
    rng, N, M = np.random.default_rng(2), 16, 21

    def draw(*shape):
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    objects, probe = draw(1, 30, 40), draw(n_modes, N, N)
    remainder = rng.uniform(-0.5, 0.5, (M, 2)).astype(np.float32) if fractional else None
    light = rng.uniform(0.5, 1.5, M) if n_modes > 1 else None
    layout = Layout(N, rng.integers(0, 14, (M, 2)), (30, 40), remainder, light=light)
    amplitude = rng.uniform(0, 3, (M, N, N))
    detector = Detector(rng.uniform(size=(N, N)) > 0.2, rng.uniform(0, 2, (N, N)))

    def gradient(objects, probe):
        return scan_gradient(objects, probe, amplitude, layout, np.arange(M), "amplitude", True, detector=detector)

    gradients, step = gradient(objects, probe), 1e-6
    rate = scan_amplitudes(objects, probe, layout).astype(float) ** 2 + detector.background
    assert np.isclose(gradients.squared_error, np.sum((np.sqrt(rate) - amplitude)[:, detector.good] ** 2), rtol=1e-6)
    for which, size, of in ((0, objects.shape, gradients.objects), (1, probe.shape, gradients.probe)):
        turn = draw(*size)
        errors = []
        for sign in (1, -1):
            moved = [x + sign * step * turn if k == which else x for k, x in enumerate((objects, probe))]
            errors.append(gradient(*moved).squared_error)
        finite = (errors[0] - errors[1]) / (2 * step)
        assert np.isclose(finite, 2 * np.vdot(of, turn).real, rtol=1e-5)


def test_a_large_scan_is_climbed_in_its_middle(exact, monkeypatch):
    monkeypatch.setattr(part, "_LARGE", 4e5)
    monkeypatch.setattr(part, "_PIXELS", 2.1e5)
    monkeypatch.setattr(part, "_LEAST", 50)
    counts = exact.diff3d.astype(float) ** 2
    counts[:, :, 37:40] = 0
    turned = exact.positions_px.max(axis=0) + exact.positions_px.min(axis=0) - exact.positions_px
    result, said = quiet(measured(exact, counts, positions_px=turned))
    names = [rung["name"] for rung in result.info["rungs"]]
    assert "whole" in names and {"pixels", "orientation"} <= kept(result) and "in 51 patterns" in said
    np.testing.assert_allclose(result.positions_px, exact.positions_px)
    assert ssim(result, exact) > 0.95


def test_a_model_that_is_named_is_fitted(exact):
    data = measured(exact, exact.diff3d.astype(float) ** 2)
    model = pt.Measurement(modes=3, background="radial", positions="affine", pixels=True)
    result, _ = quiet(data, model=model, iterations=12)
    assert len(result.modes) == 3 and result.detector.background.any() and result.info["model"]["modes"] == 3
    assert [rung["name"] for rung in result.info["rungs"]].count("modes") == 2
    for wrong in ({"modes": 0}, {"background": "flat"}, {"probe": "given", "modes": 2}):
        with pytest.raises(pt.InputError, match="Measurement"):
            pt.Measurement(**wrong)
    with pytest.raises(pt.InputError, match="one or the other"):
        pt.estimate(data, pt.Measurement(), likelihood="poisson")


def test_pixels_that_stop_counting_are_found_and_kept(exact, tmp_path):
    counts = np.square(exact.diff3d, dtype=float)
    end = np.rint(0.15 * counts.max())
    data = pt.load_data(measured(exact, np.minimum(counts, end)).save(tmp_path / "scan.npz"))
    result, said = quiet(data, iterations=25)
    assert "saturation" in kept(result) and f"stop counting at {end:.6g}" in said
    assert result.detector.end == pytest.approx(end, rel=1e-5) and result.detector.good.all()
    assert ssim(result, exact) > ssim(pt.estimate(data, "joint", iterations=25), exact) + 0.1
    back = load_reconstructions(save_reconstructions(tmp_path / "reconstruction.npz", no_network=result))["no_network"]
    known = pt.load_data(as_estimated(data, result).save(tmp_path / "known.npz"))
    assert back.detector.end == known.detector.end == result.detector.end


def test_a_stage_that_moves_while_it_is_counted(exact):
    layout = Layout.on_canvas(exact.positions_px, exact.N, exact.object.shape)
    moved = np.stack([np.roll(exact.probe, x_px, 1) for x_px in range(-3, 4)])
    rate = np.square(scan_amplitudes(exact.object, moved, layout), dtype=float)
    rate *= 3e5 / rate.sum(axis=(1, 2)).mean()
    data = measured(exact, observe_poisson(rate, 4).astype(float) ** 2)
    climb = Climb(data, pt.hold_out(data), iterations=20, seed=0)
    climb.see("given", "as given", data, climb.fit(data, refine_probe=True), 0.0)
    before = ssim(climb.result, exact)
    assert climb.decide(with_blurred_light(climb, data)) and "moves by 6 px along x:" in climb.rungs[-1].what
    assert len(climb.result.modes) > 1 and ssim(climb.result, exact) > before + 0.1


def test_what_the_middle_has_chosen_has_to_hold_for_all(exact):
    data = measured(exact, exact.diff3d.astype(float) ** 2)
    held, numbers = pt.hold_out(data), np.arange(40, 120)
    climb, given = Climb(data, held, iterations=12, seed=0), data.subset(numbers)
    middle = Climb(given, part.held_in_part(held, numbers), iterations=12, seed=0, whole=data)
    middle.see("given", "as given", given, middle.fit(given, refine_probe=False), 0.0)
    middle.see("probe", "refined", given, middle.result, 0.0)
    middle.result = replace(middle.result, probe=middle.result.probe.conj())  # defocused to the other side
    middle.rungs[-1] = replace(middle.rungs[-1], kept=True)
    _spread(climb, middle, given)
    assert [rung.name for rung in climb.rungs if rung.kept] == ["given", "given"] and not climb.probe_refined
    assert ssim(climb.result, exact) > ssim(pt.estimate(data, "fixed", held=held, iterations=12), exact) - 1e-6


def test_a_named_rung_of_which_nothing_is_found_is_said(exact):
    data = measured(exact, exact.diff3d.astype(float) ** 2)
    result, _ = quiet(data, model=pt.Measurement(positions="affine", light=True), iterations=8)
    missing = {rung["name"] for rung in result.info["rungs"] if "nothing of it is found" in rung["what"]}
    assert missing == {"affine", "light"} and not missing & kept(result)
