"""Are modules, notebooks and README in step? `python tests/in_step.py modules|clean|readme`.

Everything is made anew in a scratch copy and compared, so that a check never changes the working tree.
`clean --write` cleans the notebooks and `readme --write` writes README.md from nbs/index.ipynb, instead of comparing.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BY_HAND = ("__init__.py", "__main__.py", "network/__init__.py")  # of the package
NOTEBOOK_FOLDERS = ("nbs", "studies_nbs")
NOT_OURS = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__", "runs")


def read_tree(folder: Path, suffix: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob(f"*{suffix}")
            if ".ipynb_checkpoints" not in path.parts}


def differing(stored: dict[str, bytes], generated: dict[str, bytes]) -> list[str]:
    """The names that are on one side only or whose content differs."""
    return sorted(name for name in stored.keys() | generated.keys() if stored.get(name) != generated.get(name))


def scratch_copy(folder: str) -> Path:
    """The notebooks and the settings, with a package to export into that holds only what is written by hand."""
    scratch = Path(folder)
    shutil.copy(ROOT / "settings.ini", scratch)
    for name in NOTEBOOK_FOLDERS:
        shutil.copytree(ROOT / name, scratch / name, ignore=NOT_OURS)
    package = scratch / "ptycho_nb"
    (package / "network").mkdir(parents=True)
    for name in BY_HAND:
        shutil.copy(ROOT / "ptycho_nb" / name, package / name)
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


def superfluous_metadata(notebook: dict) -> list[str]:
    """What the metadata hold besides the kernel: executing saves the state of widgets there; nbdev_clean keeps it."""
    return sorted(notebook["metadata"].keys() - {"kernelspec"})


def is_of_a_machine(output: dict) -> bool:
    """Whether an output is a warning with a place on the machine that ran it, or the greeting of TensorFlow."""
    text = "".join(output.get("text", "")) if output.get("name") == "stderr" else ""
    return any(words in text for words in ("site-packages", "/ipykernel_", "absl::"))


def clean(root: Path) -> None:
    """Strip the notebooks of what changes from run to run."""
    for name in NOTEBOOK_FOLDERS:
        nbdev("nbdev_clean", "--fname", name, cwd=root)
        for path in (root / name).rglob("*.ipynb"):
            notebook = json.loads(path.read_text(encoding="utf-8"))
            names = superfluous_metadata(notebook)
            for key in names:
                del notebook["metadata"][key]
            is_changed = bool(names)
            for cell in notebook["cells"]:
                outputs = [output for output in cell.get("outputs", []) if not is_of_a_machine(output)]
                if len(outputs) < len(cell.get("outputs", [])):
                    cell["outputs"], is_changed = outputs, True
            if is_changed:
                text = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False)  # as nbdev_clean writes it
                path.write_text(text + "\n", encoding="utf-8")


def check_clean() -> list[str]:
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = scratch_copy(folder)
        clean(scratch)
        for name in NOTEBOOK_FOLDERS:
            notebooks = read_tree(ROOT / name, ".ipynb")
            for notebook in differing(notebooks, read_tree(scratch / name, ".ipynb")):
                keys = superfluous_metadata(json.loads(notebooks[notebook]))
                why = f"its metadata hold more than the kernel ({', '.join(keys)})" if keys else "it is not clean"
                faults.append(f"{name}/{notebook}: {why}: make export")
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


def write_readme() -> None:
    (ROOT / "README.md").write_text(readme_text(), encoding="utf-8")


def check_readme() -> list[str]:
    if (ROOT / "README.md").read_text(encoding="utf-8") == readme_text():
        return []
    return ["README.md is not what nbs/index.ipynb says: make readme"]


def main() -> int:
    checks = {"modules": check_modules, "clean": check_clean, "readme": check_readme}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=checks)
    parser.add_argument("--write", action="store_true", help="with clean or readme: put right instead of comparing")
    arguments = parser.parse_args()
    if arguments.write:
        if arguments.check == "modules":
            parser.error("modules are written by nbdev_export")
        clean(ROOT) if arguments.check == "clean" else write_readme()
        return 0
    faults = checks[arguments.check]()
    print("\n".join(faults))
    return len(faults) > 0


if __name__ == "__main__":
    sys.exit(main())
