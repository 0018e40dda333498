"""Are modules, notebooks and README in step? `python tests/in_step.py modules|clean|readme`.

Everything is made anew in a scratch copy and compared, so that a check never changes the working tree.
`readme --write` writes README.md from nbs/index.ipynb instead of comparing.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK_FOLDERS = ("nbs", "studies_nbs")
NOT_OURS = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__", "runs")


def read_tree(folder: Path, suffix: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(f"*{suffix}")}


def differing(found: dict[str, bytes], made: dict[str, bytes]) -> list[str]:
    """The names that are on one side only or whose content differs."""
    return sorted(name for name in found.keys() | made.keys() if found.get(name) != made.get(name))


def scratch_copy(folder: str) -> Path:
    """The notebooks and the settings, with a package to export into that holds nothing but its __init__."""
    scratch = Path(folder)
    shutil.copy(ROOT / "settings.ini", scratch)
    for name in NOTEBOOK_FOLDERS:
        shutil.copytree(ROOT / name, scratch / name, ignore=NOT_OURS)
    package = scratch / "ptycho_nb"
    package.mkdir()
    shutil.copy(ROOT / "ptycho_nb" / "__init__.py", package)
    return scratch


def nbdev(command: str, *arguments: str, cwd: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    tool = Path(sys.executable).with_name(command)
    subprocess.run([tool, *arguments], cwd=cwd, env=environment, check=True)


def check_modules() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        scratch = scratch_copy(folder)
        nbdev("nbdev_export", cwd=scratch)
        names = differing(read_tree(ROOT / "ptycho_nb", ".py"), read_tree(scratch / "ptycho_nb", ".py"))
    return [f"ptycho_nb/{name} is not what its notebook exports: make export" for name in names]


def check_clean() -> list[str]:
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = scratch_copy(folder)
        for name in NOTEBOOK_FOLDERS:
            nbdev("nbdev_clean", "--fname", name, cwd=scratch)
            names = differing(read_tree(ROOT / name, ".ipynb"), read_tree(scratch / name, ".ipynb"))
            faults += [f"{name}/{notebook} is not clean: make export" for notebook in names]
    return faults


def readme_text() -> str:
    """nbs/index.ipynb as Markdown; links that leave nbs/ are put right for the folder above it."""
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    notebook.metadata.language_info = {"name": "python"}  # the language of the fences; cleaning removes it
    body, resources = MarkdownExporter().from_notebook_node(notebook)
    if resources["outputs"]:
        raise SystemExit("nbs/index.ipynb holds pictures in its outputs: link a file of docs/ instead")
    return body.replace("](../", "](").replace('src="../', 'src="').strip() + "\n"


def check_readme() -> list[str]:
    if (ROOT / "README.md").read_text(encoding="utf-8") == readme_text():
        return []
    return ["README.md is not what nbs/index.ipynb says: make readme"]


def main() -> int:
    checks = {"modules": check_modules, "clean": check_clean, "readme": check_readme}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=checks)
    parser.add_argument("--write", action="store_true", help="with readme: write README.md")
    arguments = parser.parse_args()
    if arguments.write:
        (ROOT / "README.md").write_text(readme_text(), encoding="utf-8")
        return 0
    faults = checks[arguments.check]()
    print("\n".join(faults))
    return len(faults) > 0


if __name__ == "__main__":
    sys.exit(main())
