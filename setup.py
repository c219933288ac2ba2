"""Packaging: one wheel holds the library with its recipes and, as ``rrpolicy/_zoo``, archives and cards of ``zoo/``.

Lower bounds are what the code needs (pillow 12.2 has the fixes of CVE-2026-25990, -42311 and -40192); exact, tested
versions are in ``constraints.txt``.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION_FILE = HERE / "rrpolicy" / "common" / "version.py"
VERSION = re.search(r'^__version__ = "(.+)"$', VERSION_FILE.read_text(encoding="utf-8"), re.M)
if VERSION is None:
    raise RuntimeError(f'{VERSION_FILE} has no line `__version__ = "..."`')

SCALE = ["accelerate>=1.0", "dask>=2025.1", "distributed>=2025.1", "optuna>=4.0", "tomli_w>=1.0"]
FAST = ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"]
EXTRAS = {
    "tests": [
        *FAST,
        *SCALE,
        "diffusers==0.39.*",  # samplers are held against its schedulers
        "numcodecs>=0.13",  # Zarr's chunks
        "pyarrow>=17",  # LeRobot's files
        "pytest>=9",
        "pytest-cov>=7",
        "pytest-xdist>=3.8",
        "tensorboard>=2.20",
        "transformers>=4.57,<5",  # a tiny Stable Diffusion is built, saved and loaded
    ],
    "lint": ["mypy>=2", "ruff>=0.17"],
    "docs": ["furo", "myst-parser>=4", "sphinx>=8"],
    "experts": ["sb3-contrib>=2.7"],
    "d4rl": ["d4rl==1.1"],
    "lerobot": ["pyarrow>=17"],
    "zarr": ["numcodecs>=0.13"],
    "hub": ["huggingface_hub>=0.36"],
    "images": ["diffusers==0.39.*", "transformers>=4.57,<5"],  # transformers 5 breaks diffusers 0.39
    "fast": FAST,
    "scale": SCALE,
}

setup(
    name="rrpolicy",
    version=VERSION.group(1),
    description="Extract relative rewards from two diffusion planners and steer one with them.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="rrpolicy contributors",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[*find_packages(include=["rrpolicy", "rrpolicy.*"]), "rrpolicy._zoo"],
    package_dir={"rrpolicy._zoo": "zoo"},
    package_data={
        "rrpolicy": ["py.typed", "recipes/*.toml", "experiments/tuning_log.toml", "experiments/demos/maze_page.*"],
        "rrpolicy._zoo": ["*.md", "agents/**/*.zip", "agents/**/card.json"],
    },
    install_requires=[
        "cloudpickle>=3.0",
        "gymnasium-robotics>=1.4",
        "gymnasium[mujoco]>=1.2",
        "h5py>=3.11",
        "imageio[ffmpeg]>=2.36",
        "joblib>=1.4",
        "matplotlib>=3.9",
        "minari[hdf5]>=0.5.3",
        "mujoco>=4",
        "numpy>=2.0",
        "pillow>=12.2",
        "pydantic>=2.10",
        "safetensors>=0.5",
        "stable-baselines3>=2.7",
        "torch>=2.10",
        "tqdm>=4.66",
        "typer>=0.16",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["rrpolicy=rrpolicy.__main__:main"]},
)
