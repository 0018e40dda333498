"""What several test files share."""
import os
from pathlib import Path

import pytest

STAR = "siemens-star-small.npz.bz2"


@pytest.fixture(scope="session")
def measured_star() -> Path:
    """The measured scan: in the folder PTYCHO_NB_DATA, in `data/` of this checkout or of a folder beside it."""
    root = Path(__file__).resolve().parents[1]
    folders = [Path(os.environ.get("PTYCHO_NB_DATA", "/nowhere")), root / "data", *sorted(root.parent.glob("*/data"))]
    found = [folder / STAR for folder in folders if (folder / STAR).is_file()]
    if not found:
        pytest.skip(f"the measured scan {STAR} is not here: set PTYCHO_NB_DATA to its folder")
    return found[0]
