"""The zoo: pretrained agents, image models and rewards by name, each with a card of measured numbers.

`index` finds and loads them, `hub` brings single files of the Hugging Face hub, `page` makes the table of all entries.
"""

from rrpolicy.common import hub
from rrpolicy.common.publish import LICENSE, model_card, pull
from rrpolicy.zoo.index import (
    CARD,
    FOLDER_VARIABLE,
    Loaded,
    card,
    entries,
    find,
    folder,
    goal_name,
    info,
    is_image,
    load,
    load_agent,
    load_reward,
    push,
)
from rrpolicy.zoo.page import COLUMNS, HARMFUL, SCORE, table

__all__ = [
    "CARD",
    "COLUMNS",
    "FOLDER_VARIABLE",
    "HARMFUL",
    "LICENSE",
    "SCORE",
    "Loaded",
    "card",
    "entries",
    "find",
    "folder",
    "goal_name",
    "hub",
    "info",
    "is_image",
    "load",
    "load_agent",
    "load_reward",
    "model_card",
    "pull",
    "push",
    "table",
]
