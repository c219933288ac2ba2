"""The paper's experiments as one command each: units of work that can be stopped anywhere, one CSV, figures from it.

`run` goes through the units of any experiment, a `ledger` takes down what a unit measures, `results` is the CSV,
`archives` keeps what was trained, `tables` makes Markdown. A folder for each experiment: `maze2d`, `locomotion`,
`images`.
"""
