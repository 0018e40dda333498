"""Package metadata, read from settings.ini so that it is written once."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
SUFFIX = "_requirements"  # every `<name>_requirements` of settings.ini is the extra `[<name>]`
CLASSIFIERS = [
    "Development Status :: 3 - Alpha",
    "Framework :: Jupyter",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Image Processing",
    "Topic :: Scientific/Engineering :: Physics",
]
README = (HERE / "README.md").read_text(encoding="utf-8")
STUDIES = "studies_nbs"  # a folder beside the package; whoever installs it gets a copy inside


def readme_for_an_index(text: str, address: str, branch: str) -> str:
    """The README without its files beside it: links lead to the repository, or are left out where it has no address."""
    link = r"\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)"
    if address:
        text = re.sub("!" + link, rf"![\1]({address}/raw/{branch}/\2)", text)
        return re.sub(link, rf"[\1]({address}/blob/{branch}/\2)", text)
    text = re.sub("!" + link + r"\n+\*[^*\n]+\*\n+", "", text)  # a picture and the line in italics that speaks of it
    return re.sub(link, r"\1", re.sub("!" + link, "", text))


class BuildWithStudies(build_py):
    """The package, and in it the study notebooks."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # a checkout reads the folder itself
            folder = Path(self.build_lib) / settings["lib_name"] / STUDIES
            self.mkpath(str(folder))
            for path in sorted((HERE / STUDIES).glob("*.ipynb")):
                self.copy_file(str(path), str(folder / path.name))


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme_for_an_index(README, settings["git_url"], settings["branch"]),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"] or None,
    project_urls={"Source": settings["git_url"]} if settings["git_url"] else {},
    classifiers=CLASSIFIERS,
    keywords=settings["keywords"],
    license="BSD-3-Clause",
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=[settings["lib_path"], f"{settings['lib_path']}.*"]),
    install_requires=settings["requirements"].split(),
    extras_require={key.removesuffix(SUFFIX): settings[key].split() for key in settings if key.endswith(SUFFIX)},
    package_data={settings["lib_name"]: ["weights/*.npz"]},  # the pretrained network
    entry_points={"console_scripts": settings["console_scripts"].split()},
    cmdclass={"build_py": BuildWithStudies},
    zip_safe=False,
)
