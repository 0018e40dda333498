"""The public names, `import ptycho_nb as pt`: what Tab, Shift-Tab and `help()` show, and that its examples run."""
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
from numpydoc.docscrape import ClassDoc, FunctionDoc

import ptycho_nb as pt
from ptycho_nb.config import InputError

NAMES = sorted(set(pt.__all__) - {"__version__"})
WITH_A_SOURCE = {"estimate", "refine_positions", "amortised", "train", "reconstruct", "compare", "data_fit", "how_few",
                 "plan"}


def documentation(name: str) -> ClassDoc | FunctionDoc:
    """The docstring of a public name, taken apart."""
    value = getattr(pt, name)
    return ClassDoc(value) if inspect.isclass(value) else FunctionDoc(value)


@pytest.mark.parametrize("name", NAMES)
def test_every_section_that_applies_is_there(name):
    value, text = getattr(pt, name), documentation(name)
    expected = {"Summary", "Parameters", "Examples"}
    expected |= set() if inspect.isclass(value) else {"Returns"}
    expected |= set() if value is InputError else {"Raises"}
    expected |= {"References"} if name in WITH_A_SOURCE else set()
    assert not {section for section in expected if not text[section]}
    for section in ("Parameters", "Returns", "Raises", "Attributes"):
        for item in text[section]:
            added = section == "Attributes" and not item.type  # by numpydoc, from the class
            assert added or "".join(item.desc).strip(), f"{section}: nothing is said about {item.name or item.type}"
    if value is not InputError:
        assert [item.type or item.name for item in text["Raises"]] == ["InputError"]


@pytest.mark.parametrize("name", NAMES)
def test_documented_parameters_are_those_of_the_signature(name):
    value, items = getattr(pt, name), documentation(name)["Parameters"]
    documented = [part.strip(" *") for item in items for part in item.name.split(",")]
    assert documented == list(inspect.signature(value).parameters)
    if dataclasses.is_dataclass(value):
        assert documented == [field.name for field in dataclasses.fields(value) if field.init]
    defaults = [parameter.default for parameter in inspect.signature(value).parameters.values()]
    for item, default in zip(items, defaults, strict=False):
        assert item.type or "," in item.name, f"{item.name} has no type"
        assert default is not inspect.Parameter.empty or "optional" not in item.type, f"{item.name} is not optional"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_documentation_shows_is_what_happens(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = getattr(pt, name)
    (test,) = [test for test in doctest.DocTestFinder(recurse=False).find(value, name, globs={}) if test.examples]
    said: list[str] = []
    outcome = doctest.DocTestRunner().run(test, out=said.append)
    assert outcome.attempted and not outcome.failed, "".join(said)


def test_tab_shows_the_public_names_and_nothing_else():
    shown = {name for name in dir(pt) if not name.startswith("_")}
    assert shown == set(NAMES)
    assert set(pt.__all__) <= set(dir(pt)) and len(NAMES) == len(pt.__all__) - 1


def test_each_name_is_the_object_of_its_module():
    for name, module in pt._HOME.items():
        assert getattr(pt, name) is getattr(importlib.import_module(f"ptycho_nb.{module}"), name)


def test_every_wing_is_in_the_docstring_of_the_package():
    commands = {"__main__", "cli", "cli_files", "cli_overlap", "cli_plan", "cli_words"}
    wings = {item.name for item in pkgutil.iter_modules(pt.__path__)} - {"_modidx"} - commands
    listed = {word.strip(" ,") for line in pt.__doc__.splitlines() for word in line.split("  ")[0].split(",")}
    assert wings <= listed


def test_a_name_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(AttributeError, match=r"no attribute 'reconstuct'.*estimate.*reconstruct"):
        pt.reconstuct  # noqa: B018


def test_names_are_loaded_when_they_are_used():
    code = "import sys, ptycho_nb as pt; dir(pt); before = set(sys.modules); pt.InputError; after = set(sys.modules)\n"
    code += "print('numpy' in before, sorted(name for name in after - before if name.startswith('ptycho_nb')))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False ['ptycho_nb.config']"
