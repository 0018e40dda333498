"""The command line as a shell sees it: exit codes, one-line errors, and a whole experiment."""
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ptycho_nb import __version__
from ptycho_nb.cli import _parser, main

COMMANDS = ("simulate", "train", "reconstruct", "studies", "run-arm", "sweep", "report", "diagnose", "info")
SMALL = ["-p", "n_train", "40", "-p", "n_test", "40", "-p", "object_size_px", "256"]


def test_help_is_quick_and_names_every_command():
    program = Path(sys.executable).with_name("ptycho-nb")
    start = time.perf_counter()
    text = subprocess.run([program, "--help"], check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - start
    assert all(command in text for command in COMMANDS)
    assert seconds < 2  # 0.2 on an idle machine; TensorFlow alone would take 8


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["info", "absent.npz"], ["absent.npz"]),
        (["info", "."], ["config.json"]),
        (["simulate", "out", "-p", "nphotonz", "1e4"], ["'nphotonz'", "Did you mean 'nphotons'?"]),
        (["simulate", "out", "-p", "nphotons", "-1"], ["nphotons", "-1", "> 0"]),
        (["simulate", "out", "-p", "n_train", "many"], ["n_train", "'many'", "an integer"]),
        (["simulate", "out", "-p", "probe_kind", "disc"], ["'disc'", "'disk'"]),
        (["train", "absent.npz", "out"], ["absent.npz"]),
        (["reconstruct", "absent", "absent.npz", "out.npz"], ["absent"]),
        (["reconstruct", "absent", "absent.npz", "out.txt"], ["out.txt", "'.npz'"]),
        (["run-arm", "absent.ipynb", "out"], ["absent.ipynb"]),
        (["run-arm", "doze", "out"], ["'doze'", "Did you mean 'dose'?"]),
        (["run-arm", "doze", "--help"], ["'doze'", "Did you mean 'dose'?"]),
        (["studies", "copy", "out", "doze"], ["'doze'", "Did you mean 'dose'?"]),
        (["studies", "copy"], ["ptycho-nb studies copy my_studies"]),
    ],
)
def test_a_wrong_input_is_one_line_and_leaves_nothing(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ptycho-nb: ") and error.count("\n") == 1
    assert all(text in error for text in named)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example_that_can_be_parsed(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    text = capsys.readouterr().out
    example = text.partition("example:\n")[2].splitlines()[0].split()
    assert exit_.value.code == 0 and example[:2] == ["ptycho-nb", command]
    assert _parser().parse_args(example[1:]).run


def test_the_help_of_a_study_lists_its_parameters(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "dose", "--help"])
    text = capsys.readouterr().out
    assert "nphotons = 1e9" in text and "mean detected photons per pattern" in text


def test_a_study_is_found_copied_and_named_by_its_path(tmp_path, capsys):
    assert main(["studies", "copy", str(tmp_path / "mine"), "dose"]) == 0
    assert main(["studies", "path", "dose"]) == 0
    copied, original = map(Path, capsys.readouterr().out.splitlines())
    assert copied == tmp_path / "mine" / "dose.ipynb" and copied.read_bytes() == original.read_bytes()
    assert main(["studies", "copy", str(tmp_path / "mine"), "dose"]) == 2
    assert main(["studies", "copy", str(tmp_path / "mine"), "dose", "--again"]) == 0


def test_the_module_is_the_command():
    run = subprocess.run([sys.executable, "-m", "ptycho_nb", "--version"], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == f"ptycho_nb {__version__}"


def test_a_wrong_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["simulatte"])
    assert exit_.value.code == 2
    assert "simulate" in capsys.readouterr().err


def test_simulate_train_reconstruct_info(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "scans", "-p", "nphotons", "1e6", *SMALL]) == 0
    assert main(["info", "scans/test.npz"]) == 0
    assert '"n_patterns": 40' in capsys.readouterr().out

    settings = ["-p", "gridsize", "1", "-p", "nepochs", "1", "-p", "n_filters", "4"]
    assert main(["train", "scans/train.npz", "network", *settings]) == 0
    assert main(["reconstruct", "network", "scans/test.npz", "object.npz", "--refine-positions"]) == 0
    with np.load("object.npz", allow_pickle=False) as arrays:
        assert {"object", "coverage", "origin_px", "positions_px", "probe"} <= set(arrays)
        assert np.isfinite(arrays["object"]).all() and arrays["coverage"].max() > 0
    said = capsys.readouterr().out
    assert "object.npz" in said and "positions " in said
    assert {path.name for path in Path("network").iterdir()} >= {"wts.h5.zip", "history.json"}


def test_a_failing_study_is_exit_code_one(tmp_path, monkeypatch, capsys):
    import nbformat

    monkeypatch.chdir(tmp_path)
    cells = [nbformat.v4.new_code_cell("output_dir: str = ''"), nbformat.v4.new_code_cell("{}['nothing']")]
    cells[0].metadata.tags = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(notebook, "study.ipynb")
    assert main(["run-arm", "study.ipynb", "arm"]) == 1
    error = capsys.readouterr().err
    assert "KeyError" in error and "arm/notebook.ipynb" in error and error.count("\n") == 1


def test_a_reader_who_has_seen_enough_ends_it_quietly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "scans", *SMALL]) == 0
    program = Path(sys.executable).with_name("ptycho-nb")
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([program, "info", "scans/test.npz"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")
