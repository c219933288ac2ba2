"""Recorded behaviour: the dataset, how its rows are packed and normalised, and readers of the common formats.
Everything here is in environment units until a ``Normalizer`` has been applied."""

from typing import TYPE_CHECKING

from rrpolicy.common.lazy import lazy

if TYPE_CHECKING:
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

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Affine": "normalizer",
        "Normalizer": "normalizer",
        "TrajectoryDataset": "dataset",
        "TrajectoryLayout": "layout",
        "Windows": "dataset",
        "from_d4rl": "readers",
        "from_lerobot": "lerobot",
        "from_minari": "readers",
        "from_npz": "npz",
        "from_replay_buffer": "replay_buffers",
        "from_robomimic": "robomimic",
        "from_zarr": "zarr_store",
        "load_dataset": "readers",
        "save_minari": "writers",
    },
)
