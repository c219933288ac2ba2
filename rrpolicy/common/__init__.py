"""The ground floor: shared types, the safe archive, seeding and the one training loop.
Nothing here knows what an agent, a reward or a maze is."""
