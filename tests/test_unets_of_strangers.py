"""U-Nets whose configuration others have written: sizes that cannot be denoised are refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pipelines import unet, write_ddpm
from test_cli import fault

from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.unet import MAX_SIDE, UNetScoreModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ddpm(tmp_path_factory.mktemp("models") / "ddpm")


@pytest.mark.parametrize(
    "size",
    [
        7,
        1,
        2**24,
        True,
        0,
        -8,
        8.5,
        "8",
        [8, 8.5],
        [8, True],
        [8],
        [8, 8, 8],
        [8, 9],
        [[8], 8],
        MAX_SIDE + 2,
    ],
)
def test_sizes_that_cannot_be_denoised(size: Any, folder: Path, tmp_path: Path) -> None:
    path = folder / "unet" / "config.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(before), "sample_size": size}))
        line = fault("images", "sample", "--model", folder, "--out", tmp_path / "out", "--n", 1)
    finally:
        path.write_text(before)
    assert (str(folder) in line or "wanted a sample_size that 2 divides" in line) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [2, (4, 6), [6, 2]])
def test_sizes_that_can(size: Any) -> None:
    model = UNetScoreModel(unet(size=size), DiffusionProcess(20), PixelCodec((1, *([size] * 2 if size == 2 else size))))
    x_t = torch.zeros(1, *model.event_shape)
    assert model.eps(x_t, torch.zeros(1, dtype=torch.int64)).shape == x_t.shape


def test_blocks_that_do_not_fit_are_one_error() -> None:
    model = UNetScoreModel(unet(), DiffusionProcess(20), PixelCodec((1, 8, 8)))
    model.unet.conv_in = torch.nn.Conv2d(1, 9, 3)
    with pytest.raises(ValueError, match=r"the UNet cannot denoise events of shape \(1, 8, 8\): "):
        model.eps(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))
