"""What whoever installs the package gets: the studies and the network inside, and commands that work anywhere."""
import email
import os
import re
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from ptycho_nb import __version__
from ptycho_nb.runs.arms import read_arm

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("setup.py", "settings.ini", "pyproject.toml", "MANIFEST.in", "README.md", "ptycho_nb", "studies_nbs")
STUDIES = sorted(path.name for path in (ROOT / "studies_nbs").glob("*.ipynb"))


def environment(**more: str) -> dict[str, str]:
    """The variables of this process without those by which the checkout would be found or TensorFlow kept quiet."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL")} | more


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of what it is made of, so that nothing of an earlier build can get into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(source)]
    run = subprocess.run(build, env=environment(), capture_output=True, text=True)
    if run.returncode and any(word in run.stderr for word in ("No matching distribution", "NewConnectionError")):
        pytest.skip("no package index in reach: a wheel is built in an environment of its own")
    assert run.returncode == 0, run.stderr[-3000:]
    (path,) = out.glob("*.whl")
    return path


def test_the_studies_and_the_network_travel_in_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    studies = sorted(Path(name).name for name in names if name.startswith("ptycho_nb/studies_nbs/"))
    assert studies == STUDIES
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ptycho_nb").rglob("*.py")}
    weights = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ptycho_nb" / "weights").glob("*.npz")}
    assert modules | weights <= set(names) and weights
    assert {Path(name).parts[0] for name in names} == {"ptycho_nb", wheel.name.split("-py3")[0] + ".dist-info"}


RELATIVE = r"\]\((?!https?:|#)[^)]*\)"  # a link to a file beside the README


def test_what_a_package_index_shows_is_true(wheel):
    """Without an address of the repository: no picture and no link that leads nowhere, no empty entry."""
    names = zipfile.ZipFile(wheel)
    (path,) = (name for name in names.namelist() if name.endswith("dist-info/METADATA"))
    metadata = email.message_from_bytes(names.read(path))
    text = metadata.get_payload()
    assert "# ptycho_nb" in text and "ptycho-nb run-arm dose" in text and not re.findall(RELATIVE, text)
    assert metadata["Version"] == __version__ and "UNKNOWN" not in metadata.values() and "" not in metadata.values()
    assert metadata["Requires-Python"] == ">=3.11" and not metadata.get_all("Project-URL") and not metadata["Home-page"]


def test_with_an_address_the_pictures_of_the_readme_are_found(tmp_path):
    """Every link of the README leads to a file of the repository at that address."""
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    settings = (ROOT / "settings.ini").read_text().replace("\ngit_url =\n", "\ngit_url = https://example.org/ptycho_nb\n")
    (tmp_path / "settings.ini").write_text(settings)
    asked = [sys.executable, "setup.py", "--quiet", "--long-description", "--url"]
    text = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    pictures = re.findall(r"!\[[^\]]*\]\((.*?)\)", text)
    links = re.findall(r"https://example.org/ptycho_nb/(?:raw|blob)/main/([^)]*)", text)
    assert pictures and all(path.startswith("https://example.org/ptycho_nb/raw/main/docs/") for path in pictures)
    assert not re.findall(RELATIVE, text) and all((ROOT / path).exists() for path in links) and len(links) > 20


def test_what_hosts_read_is_what_the_repository_holds():
    """The workflow calls a script that is there, Binder installs this folder, the citation is of this version."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"] and os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)
    asked = re.findall(r"make (\w+)", (ROOT / ".ci" / "run").read_text().partition("set -e")[2])
    assert asked and all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in asked)
    oldest = re.search(r"^min_python = (.+)$", (ROOT / "settings.ini").read_text(), re.MULTILINE)[1]
    assert job["container"].startswith(f"python:{oldest}-")
    assert (ROOT / "binder" / "runtime.txt").read_text().strip() == f"python-{oldest}"
    assert (ROOT / "binder" / "requirements.txt").read_text().split() == ["."], "from the folder of the repository"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["license"] == "BSD-3-Clause"


def test_what_is_installed_finds_its_own_studies(wheel, tmp_path):
    """With the packages of this environment and the wheel in a folder of its own, away from the checkout."""
    site, work = tmp_path / "site", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(site)
    work.mkdir()

    def ptycho_nb(*words: str) -> str:
        command = [sys.executable, "-m", "ptycho_nb", *words]
        run = subprocess.run(command, cwd=work, env=environment(PYTHONPATH=str(site)), capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    assert Path(ptycho_nb("studies", "path", "dose").strip()) == site / "ptycho_nb" / "studies_nbs" / "dose.ipynb"
    assert [line.split()[0] + ".ipynb" for line in ptycho_nb("studies").splitlines()] == STUDIES
    ptycho_nb("studies", "copy", "mine", "dose", "explore")
    assert sorted(path.name for path in (work / "mine").iterdir()) == ["dose.ipynb", "explore.ipynb"]
    assert "nphotons = 1e9" in ptycho_nb("run-arm", "dose", "--help")


@pytest.mark.long
def test_a_fresh_environment_runs_the_main_job(wheel, tmp_path, request):
    """Some minutes and three gigabytes: everything that the package requires, from the index."""
    home, work = tmp_path / "fresh", tmp_path / "work"
    request.addfinalizer(lambda: shutil.rmtree(home, ignore_errors=True))
    work.mkdir()
    began = time.perf_counter()
    venv.create(home, with_pip=True)
    subprocess.run([home / "bin" / "python", "-m", "pip", "install", "-q", str(wheel)], env=environment(), check=True)
    installed = time.perf_counter()
    command = [home / "bin" / "ptycho-nb", "run-arm", "dose", "out", "-p", "nphotons", "1e4"]
    run = subprocess.run(command, cwd=work, env=environment(), capture_output=True, text=True)
    ended = time.perf_counter()
    print(f"installing took {(installed - began) / 60:.1f} min, the arm {(ended - installed) / 60:.1f} min")
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stderr == "", "an arm that goes well says nothing on the error stream"
    assert read_arm(work / "out").done and "out: done" in run.stdout
