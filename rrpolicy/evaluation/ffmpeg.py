"""Pictures encoded as a video by a process of ffmpeg, whose faults become errors."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

import imageio_ffmpeg
import numpy as np

from rrpolicy.common.typing import Array

LEAST_ROOM = 2**14  # bytes; with less of them free a disk counts as full
ENCODING = [
    "-c:v",
    "libx264",
    "-pix_fmt",
    "yuv420p",
    "-preset",
    "veryfast",
    "-crf",
    "20",
    "-movflags",
    "+faststart",
]


def encode(pictures: Iterable[Array], path: Path, fps: float) -> int:
    """
    Write pictures as a video, H.264 in an MP4 file.

    :param pictures: (h, w, 3) uint8, all of one size
    :param path: file
    :param fps: pictures per second
    :return: how many pictures there were
    :raises OSError: when the encoder fails, with what it said
    """
    encoder: _Encoder | None = None
    n_frames = 0
    try:
        for picture in pictures:
            height, width = (side - side % 2 for side in picture.shape[:2])  # h264 wants even sides
            encoder = encoder or _Encoder(path, (width, height), fps)
            encoder.write(np.ascontiguousarray(picture[:height, :width]))
            n_frames += 1
        if encoder is not None:
            encoder.finish()
    finally:
        if encoder is not None:
            encoder.stop()
    return n_frames


class _Encoder:
    """
    A process of ffmpeg that reads pictures and writes a file.

    :param size: width and height of all pictures
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        pictures = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "{}x{}".format(*size), "-r", str(fps), "-i", "-"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *pictures, "-an", *ENCODING, f"file:{path}"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches this process, which stops ffmpeg
        )
        self._folder, self._said = path.parent, b""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def write(self, picture: Array) -> None:
        """One picture (h, w, 3)."""
        with self._failing():
            self._pipe.write(picture.data)

    def finish(self) -> None:
        """Wait until the file is complete."""
        with self._failing():
            self._pipe.close()
        if self._process.wait():
            raise OSError(self._fault())

    def stop(self) -> None:
        """End the process, wherever it is."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        with suppress(OSError):
            self._pipe.close()

    @property
    def _pipe(self) -> IO[bytes]:
        return cast(IO[bytes], self._process.stdin)

    def _listen(self) -> None:
        with cast(IO[bytes], self._process.stderr) as stderr:
            for line in stderr:
                self._said = line or self._said

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Replace a broken pipe by the message of the process that has ended."""
        try:
            yield
        except BrokenPipeError:
            self._process.wait()
            raise OSError(self._fault()) from None

    def _fault(self) -> str:
        self._listener.join()
        said = self._said.decode(errors="replace").strip() or "ffmpeg has failed"
        full = self._folder.is_dir() and shutil.disk_usage(self._folder).free < LEAST_ROOM
        return f"the video cannot be written: {'No space left on device, ' if full else ''}{said}"
