"""A video of one start, acted from by base, steered base and expert: what steering does in the environment.

It is written beside the page, and the page holds it where it is small.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rrpolicy.common.arguments import whole
from rrpolicy.common.files import atomic_write
from rrpolicy.common.messages import printable
from rrpolicy.common.typing import Predictor
from rrpolicy.evaluation.video import record_side_by_side
from rrpolicy.images.page import plain_text

CLIP_FILE = "counterfactual.mp4"
N_STEPS = 300  # of the environment at most
N_FRAMES, FPS = 100, 20
MAX_EMBEDDED = 2 * 2**20  # bytes of a video that a page holds


@dataclass(frozen=True, eq=False)
class Clip:
    """
    A video of agents from one start.

    :param content: of an MP4 file; empty where none could be made
    :param names: of the agents, from left to right
    :param seed: of the environment's start
    :param missing: why there is no video
    """

    content: bytes
    names: tuple[str, ...]
    seed: int
    missing: str = ""

    @classmethod
    def record(
        cls,
        agents: Mapping[str, Predictor],
        env: Callable[..., Any] | str,
        n_steps: int = N_STEPS,
        seed: int = 0,
        deterministic: bool = True,
    ) -> Clip:
        """
        Let agents act from the same start, beside each other.

        What cannot be drawn here, for want of OpenGL, a library or ffmpeg, is no error: ``missing`` says why.

        :param agents: by name, such as base, steered at 0.5, steered at 1, expert
        :param env: id of an environment, or a function that makes one
        :param n_steps: environment steps at most
        :param seed: of the start and of the agents
        :param deterministic: passed to ``predict``
        """
        every = max(whole("n_steps", n_steps, 1) // N_FRAMES, 1)
        with TemporaryDirectory() as folder:
            path = Path(folder) / CLIP_FILE
            try:
                record_side_by_side(agents, env, path, n_steps, seed, FPS, deterministic, steps_per_frame=every)
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                return cls(b"", tuple(agents), seed, printable(error, 200))
            return cls(path.read_bytes(), tuple(agents), seed)

    def write(self, folder: Path) -> None:
        """Write the video into a folder; one of an older comparison is removed where there is none."""
        path = folder / CLIP_FILE
        if not self.content:
            path.unlink(missing_ok=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(self.content)

    def html(self) -> str:
        """The video, where a page may hold it, and what it shows."""
        if self.missing:
            return f'<p class="note">No video: {escape(self.missing)}.</p>'
        names = ", ".join(plain_text(name) for name in self.names)
        about = escape(
            f"In the environment, from left to right: {names}, all from its start of seed {self.seed}, in {CLIP_FILE}."
        )
        if len(self.content) > MAX_EMBEDDED:
            size = f"{len(self.content) / 2**20:.1f} MiB"
            return f'<p class="note">{about} The video has {size}, so that this page does not hold it.</p>'
        source = f"data:video/mp4;base64,{base64.b64encode(self.content).decode()}"
        video = f'<video controls muted playsinline src="{source}"></video>'
        return f"<figure>{video}<figcaption>{about}</figcaption></figure>"
