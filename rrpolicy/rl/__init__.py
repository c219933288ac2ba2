"""Reinforcement learning on an extracted reward, and other learners that it is compared with."""
