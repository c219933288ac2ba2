"""Fuzzers of everything that reads a file: seeded damage and malice, and a judge of what each loader makes of it.

`targets` lists the loaders, `mutate` and its neighbours change their files, `harness` runs and judges the cases.
"""
