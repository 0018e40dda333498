"""Package metadata, read from settings.ini so that it is written once."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
SUFFIX = "_requirements"  # every `<name>_requirements` of settings.ini is the extra `[<name>]`

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    keywords=settings["keywords"],
    license="BSD-3-Clause",
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=[settings["lib_path"], f"{settings['lib_path']}.*"]),
    install_requires=settings["requirements"].split(),
    extras_require={key.removesuffix(SUFFIX): settings[key].split() for key in settings if key.endswith(SUFFIX)},
    package_data={settings["lib_name"]: ["weights/*.npz"]},  # the pretrained network
    entry_points={"console_scripts": settings["console_scripts"].split()},
    zip_safe=False,
)
