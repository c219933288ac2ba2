"""Recorded behaviour: the dataset, how its rows are packed and normalised, and readers of the common formats.
Everything here is in environment units until a ``Normalizer`` has been applied."""

from rrpolicy.data.dataset import TrajectoryDataset, Windows
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.lerobot import from_lerobot
from rrpolicy.data.normalizer import Affine, Normalizer
from rrpolicy.data.npz import from_npz
from rrpolicy.data.readers import from_d4rl, from_minari, load_dataset
from rrpolicy.data.replay_buffers import from_replay_buffer
from rrpolicy.data.robomimic import from_robomimic
from rrpolicy.data.writers import save_minari
from rrpolicy.data.zarr_store import from_zarr

__all__ = [
    "Affine",
    "Normalizer",
    "TrajectoryDataset",
    "TrajectoryLayout",
    "Windows",
    "from_d4rl",
    "from_lerobot",
    "from_minari",
    "from_npz",
    "from_replay_buffer",
    "from_robomimic",
    "from_zarr",
    "load_dataset",
    "save_minari",
]
