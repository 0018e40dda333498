"""The picture at the head of the README and of the documentation: `python docs/front.py`. Half a minute."""
from pathlib import Path

import ptycho_nb as pt
from ptycho_nb.files import replacing

PICTURE = Path(__file__).resolve().parent / "dose_1e4.png"
REGION = (32, 165, 120, 284)  # of the scanned area, so that single lines are seen


def main() -> None:
    _, scan = pt.simulate_halves(pt.SimulationConfig(nphotons=1e4))
    images = {"no_network": pt.estimate(scan), "amortised": pt.amortised(scan)}
    scores = {name: pt.compare(image, scan.truth) for name, image in images.items()}
    y0 = int(scan.positions_px[:, 0].min())
    y1, x0, x1 = y0 + REGION[1] - REGION[0], REGION[2], REGION[3]
    figure = pt.plot_comparison(images, scan.truth, scores, (y0, y1, x0, x1))
    with replacing(PICTURE) as path:
        figure.savefig(path, format="png", dpi=130)


if __name__ == "__main__":
    main()
