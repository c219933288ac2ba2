"""The library's promises as one call: :func:`check_agent` and :func:`check_reward`, for the library's and your own.

They hold an object against the contracts *predict*, *units*, *one normaliser* and *archive*, train nothing, and raise
a :class:`ContractError` that names the contract and what was seen. :class:`DriftEnv` is a toy environment to try
agents in.
"""

from rrpolicy.testing.agents import check_agent
from rrpolicy.testing.contracts import ContractError
from rrpolicy.testing.drift import DriftEnv
from rrpolicy.testing.rewards import check_reward

__all__ = ["ContractError", "DriftEnv", "check_agent", "check_reward"]
