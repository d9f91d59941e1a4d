"""The report of the train task: what training gains, and how long it takes."""
