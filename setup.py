"""Reads package metadata and requirements from settings.ini, their one place."""
import configparser, pathlib, re
from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent
cfg = configparser.ConfigParser(interpolation=None)
cfg.read(here / "settings.ini", encoding="utf-8")
meta = cfg["DEFAULT"]
version = re.search(r'__version__ = "(.+?)"', (here / "vlp_course/__init__.py").read_text()).group(1)


def lines(key: str) -> list[str]:
    return [line.strip() for line in meta[key].splitlines() if line.strip()]


setup(
    name=meta["lib_name"],
    version=version,
    description=meta["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license=meta["license"],
    author=meta["author"],
    keywords=meta["keywords"].split(),
    python_requires=f">={meta['min_python']},<{meta['max_python']}",
    classifiers=[f"Programming Language :: Python :: 3.{n}" for n in (11, 12, 13)],
    packages=find_packages(include=["vlp_course", "vlp_course.*"]),
    package_data={"vlp_course": ["*.mplstyle"]},
    install_requires=lines("requirements"),
    extras_require={"eval": lines("eval_requirements"), "lm": lines("lm_requirements"),
                    "dev": lines("eval_requirements") + lines("lm_requirements") + lines("dev_requirements")},
    entry_points={"console_scripts": lines("console_scripts")},
)
