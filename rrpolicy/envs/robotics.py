"""Registers gymnasium-robotics' environments without the notice about other environments that its import prints.
Import this module instead of gymnasium_robotics, and first."""

import contextlib
import importlib

import gymnasium as gym

with contextlib.suppress(ImportError, AttributeError):
    importlib.import_module("farama_notifications").notifications.pop("gymnasium_robotics", None)

import gymnasium_robotics

gym.register_envs(gymnasium_robotics)
