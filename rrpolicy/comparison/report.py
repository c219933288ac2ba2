"""A comparison with its page: findings that can be written to a folder."""

from __future__ import annotations

from pathlib import Path

from rrpolicy.common.files import write_json
from rrpolicy.comparison.clips import Clip
from rrpolicy.comparison.page import write_page
from rrpolicy.comparison.result import Findings

JSON_FILE = "comparison.json"


class Comparison(Findings):
    """The difference of two models, see :func:`rrpolicy.diff` and `Findings`."""

    def write(self, folder: str | Path) -> Path:
        """
        Write ``index.html``, which holds all it needs, ``comparison.json``, the pictures and the video.

        :param folder: made when missing; files of an older comparison are replaced
        :return: path of the page
        """
        values = self.to_dict()
        page = write_page(self, folder)
        (self.clip or Clip(b"", (), self.seed)).write(Path(folder))
        write_json(Path(folder) / JSON_FILE, values)
        return page
