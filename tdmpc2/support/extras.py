"""Optional packages: what each adds, and how to install it.

The distribution is not on the package index, so ``pip install 'tdmpc2-opt[video]'`` would find nothing. Messages name
the libraries themselves.
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple


class Extra(NamedTuple):
    """A group of optional packages; the groups of ``pyproject.toml`` are these."""

    purpose: str
    packages: tuple[str, ...]  # as pip knows them
    modules: tuple[str, ...]  # as Python imports them


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
    "metaworld": Extra("Meta-World's tasks (mw-reach ...)", ("metaworld",), ("metaworld",)),
    "box2d": Extra("Gymnasium's Box2D tasks (BipedalWalker-v3 ...)", ("Box2D", "pygame"), ("Box2D", "pygame")),
    "maniskill": Extra("ManiSkill's tasks (ms-push-cube ...)", ("mani_skill",), ("mani_skill",)),
    "robotics": Extra("the tasks of Gymnasium-Robotics", ("gymnasium-robotics",), ("gymnasium_robotics",)),
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


def install_hint(extra: str) -> str:
    """The command that installs the packages of an extra."""
    return f"pip install {' '.join(EXTRAS[extra].packages)}"


def missing_packages(extra: str) -> list[str]:
    """Packages of an extra that are not installed; none of them is imported."""
    pairs = zip(EXTRAS[extra].packages, EXTRAS[extra].modules, strict=True)
    return [package for package, module in pairs if importlib.util.find_spec(module) is None]
