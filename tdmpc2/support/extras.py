"""Optional packages: what each adds, and how to install it.

The distribution is not on the package index, so that ``pip install 'tdmpc2-opt[video]'`` finds it only where it is
installed already. Messages name the libraries themselves, but for environments, which work with few versions of theirs:
there the extra brings the right ones.
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple


class Extra(NamedTuple):
    """A group of optional packages; the groups of ``pyproject.toml`` are these."""

    purpose: str
    packages: tuple[str, ...]  # as pip knows them
    modules: tuple[str, ...]  # as Python imports them
    environment: bool = False  # its first module is that of some tasks


EXTRAS = {
    "video": Extra("videos of evaluations (save_video)", ("imageio", "imageio-ffmpeg"), ("imageio", "imageio_ffmpeg")),
    "window": Extra("the window of `tdmpc2 play`", ("pygame", "pillow"), ("pygame", "PIL")),
    "figures": Extra("figures of reports and data", ("matplotlib",), ("matplotlib",)),
    "notebooks": Extra(
        "running the notebooks", ("nbclient", "nbformat", "ipykernel"), ("nbclient", "nbformat", "ipykernel")
    ),
    "docs": Extra(
        "the documentation site",
        ("zensical", "mkdocstrings-python", "latex2mathml"),
        ("zensical", "mkdocstrings", "latex2mathml"),
    ),
    "metaworld": Extra("Meta-World's tasks (mw-reach ...)", ("metaworld",), ("metaworld",), True),
    "box2d": Extra("Gymnasium's Box2D tasks (BipedalWalker-v3 ...)", ("Box2D", "pygame"), ("Box2D", "pygame"), True),
    "maniskill": Extra("ManiSkill's tasks (ms-push-cube ...)", ("mani_skill",), ("mani_skill",), True),
    "robotics": Extra("the tasks of Gymnasium-Robotics", ("gymnasium-robotics",), ("gymnasium_robotics",), True),
    "slurm": Extra("multiruns on a Slurm cluster", ("hydra-submitit-launcher",), ("submitit",)),
    "joblib": Extra("multiruns side by side on one machine", ("hydra-joblib-launcher",), ("joblib",)),
    "export": Extra(
        "models as ONNX files", ("onnx", "onnxscript", "onnxruntime"), ("onnx", "onnxscript", "onnxruntime")
    ),
    "hub": Extra(
        "models of a hub (hf://user/name)", ("huggingface_hub", "safetensors"), ("huggingface_hub", "safetensors")
    ),
    "minari": Extra("data sets of Minari", ("minari", "h5py"), ("minari", "h5py")),
    "lerobot": Extra("data sets in LeRobot's format", ("pyarrow",), ("pyarrow",)),
    "tensorboard": Extra("curves in TensorBoard", ("tensorboard",), ("tensorboard",)),
    "ray": Extra("multiruns on a Ray cluster", ("hydra-ray-launcher",), ("ray",)),
}

#: Module -> the extra of `make setup` that brings it as well, and what pip installs, its pins left aside.
_WITHOUT_PINS = {
    "myosuite": (
        "envs",
        "MyoSuite==2.11.6 flatten-dict gitdb GitPython h5py pink-noise-rl sk-video smmap termcolor",
    )
}


def extra_of(module: str) -> str | None:
    """Name the extra that brings an environment's module, as Python imports it; None if there is none."""
    return next((name for name, extra in EXTRAS.items() if extra.environment and module == extra.modules[0]), None)


def install_module(module: str) -> str:
    """Say how the package of an environment is installed, in a clone of the repository and beside an installed wheel.

    Args:
        module: as Python imports it.
    """
    if module in _WITHOUT_PINS:
        extra, packages = _WITHOUT_PINS[module]
        elsewhere = f"pip install --no-deps {packages}"
    elif found := extra_of(module):
        extra, elsewhere = found, f'pip install "tdmpc2-opt[{found}]"'
    else:
        return f"install the package that brings the module {module}"
    return f"run `make setup EXTRAS={extra}` in a clone of the repository, or `{elsewhere}` without one"


def install_hint(extra: str) -> str:
    """The command that installs the packages of an extra; of environments, see :func:`install_module`."""
    if EXTRAS[extra].environment:
        return install_module(EXTRAS[extra].modules[0])
    return f"pip install {' '.join(EXTRAS[extra].packages)}"


def missing_packages(extra: str) -> list[str]:
    """Packages of an extra that are not installed; none of them is imported."""
    pairs = zip(EXTRAS[extra].packages, EXTRAS[extra].modules, strict=True)
    return [package for package, module in pairs if importlib.util.find_spec(module) is None]
