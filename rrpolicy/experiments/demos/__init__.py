"""Demos of the main pipeline: a reward is extracted from two agents, and the base is steered with it.

`maze` extracts the reward, from a pair of the zoo or from scratch; `robot` can take it from the zoo, too. `images` does
the same with image models. `stage` is what they share. Every result is written as soon as it is there.
"""

from __future__ import annotations

from dataclasses import dataclass

from rrpolicy.evaluation import Row
from rrpolicy.experiments.demos.images import N_SAMPLES, ImagesDemo
from rrpolicy.experiments.demos.maze import maze_demo
from rrpolicy.experiments.demos.robot import robot_demo
from rrpolicy.experiments.demos.stage import Stage

__all__ = ["N_SAMPLES", "Demo", "ImagesDemo"]


@dataclass(frozen=True)
class Demo(Stage):
    """
    See :class:`Stage`; beside that:

    :param from_scratch: train both agents instead of taking them from the zoo; a maze of one's own implies it
    :param html: leave a page in which the steered planner runs in the browser, in the folder ``page``; only in mazes
    """

    from_scratch: bool = False
    html: bool = False

    def run(self) -> list[Row]:
        """
        Run the demo.

        :return: the rows of ``results.json``
        :raises ValueError: when the zoo lacks what is needed, naming what it has, or the page's runtime cannot be
            downloaded; before anything is removed
        """
        if self.n_episodes is not None and self.n_episodes < 1:
            raise ValueError(f"n_episodes is {self.n_episodes}, it must be at least 1")
        if self.task.is_maze:
            return maze_demo(self, self.from_scratch, self.html)
        if self.html:
            raise ValueError(f"html is True, and {self.task.env_id} is no maze, which the page shows")
        return robot_demo(self, self.from_scratch)
