"""Whole patterns or photons of every pattern: what should judge where patterns hardly overlap?

A Siemens star with amplitude and phase under fewer and fewer patterns, at two doses; with the exact probe held fixed,
and as a measured scan out of focus by 1.5 rad. Amplitude SSIM, goodness, rungs. Five minutes on one core.
"""
import warnings

import numpy as np
from faults import as_measured, exact_scan

import ptycho_nb as pt
from ptycho_nb.physics.probes import probe_diameter_px
from ptycho_nb.physics.scans import nearest_spacing_px, validation_indices
from ptycho_nb.solvers.held_out import HELD_OUT, HeldOut, hold_out_photons
from ptycho_nb.solvers.rungs import refocused


def judges(data: pt.RawData) -> dict[str, HeldOut]:
    """The two ways to hold counts out."""
    patterns = validation_indices(data.n_patterns, HELD_OUT, 0)
    return {"patterns": pt.hold_out(data, patterns), "photons": hold_out_photons(data)}


def main() -> None:
    warnings.simplefilter("ignore")
    print("| patterns | photons | overlap | judge | probe known | out of focus | goodness | rungs |")
    print("| --- " * 8 + "|")
    for n in (49, 81, 121, 169):
        for nphotons in (1e4, 1e6):
            exact = exact_scan(nphotons, n=n)
            spacing_px = np.median(nearest_spacing_px(exact.positions_px))
            overlap = 1 - spacing_px / probe_diameter_px(exact.probe)
            measured = as_measured(exact, probe=refocused(exact.probe, 1.5))
            for name in ("patterns", "photons"):
                known = pt.estimate(exact, held=judges(exact)[name], progress=False)
                judged = pt.estimate(measured, held=judges(measured)[name], progress=False)
                scores = [pt.compare(result, exact.truth)["amplitude"]["ssim"] for result in (known, judged)]
                kept = [rung["name"] for rung in judged.info["rungs"] if rung["kept"]][1:]
                print(f"| {n} | {nphotons:.0e} | {overlap:.2f} | {name} | {scores[0]:.3f} | {scores[1]:.3f} | "
                      f"{judged.info['goodness']['ratio']:.2f} | {', '.join(kept)} |", flush=True)


if __name__ == "__main__":
    main()
