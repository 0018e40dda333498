"""Run notebooks as `nbdev_test` does, two at a time: `python tests/run_notebooks.py [FOLDER or FILE]`.

The shell of `nbdev_test` draws a figure that is the value of a cell twice, each time at double resolution, and goes on
where it cannot be drawn. Here it is drawn once, as in JupyterLab, and has to be.
"""
import os
import sys
from pathlib import Path

os.environ["IN_TEST"] = "1"

from execnb.shell import CaptureShell
from fastcore.parallel import parallel
from nbdev import test
from nbdev.config import get_config
from nbdev.doclinks import nbglob


class Shell(CaptureShell):
    """Nobody keeps the outputs: they are made where they are displayed, and only there."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, mpl_format="png")

    def showtraceback(self, *words, **options) -> None:
        """Also of what fails while a value is displayed, which IPython does not take for a failure of the cell."""
        self.failure = sys.exc_info()[1]
        super().showtraceback(*words, **options)

    def _run(self, *words, **options):
        self.failure = None
        done = super()._run(*words, **options)
        done.quiet = True  # the value of the cell, which has been displayed, is not displayed again
        done.exception = done.exception or self.failure
        return done


test.CaptureShell = Shell  # here, so that a process which is not forked has it too


def main(path: str | None = None) -> int:
    config = get_config()
    files = [file.absolute() for file in nbglob(path, as_path=True)]
    files.sort(key=lambda file: (file.name != "index.ipynb", file))  # it takes longest
    assert files, f"{path or config.nbs_path}: no notebook"
    os.chdir(config.nbs_path)
    done = parallel(test.test_nb, files, n_workers=2, pause=0, skip_flags=config.tst_flags.split(),
                    basepath=config.config_path)
    failed = [file for file, (passed, _) in zip(files, done, strict=True) if not passed]
    print(*[f"failed: {file}" for file in failed] or [f"{len(files)} notebooks run"], sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
