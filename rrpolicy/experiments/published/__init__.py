"""Published numbers: README, docs and the zoo's page hold what the committed rows say, and nothing else.

`rows` selects rows of CSVs and cards, `keys` makes numbers of them, `tables` makes tables, `pages` compares pages with
both and rewrites them.
"""
