"""The report of the align task: what steering gains, and what it costs."""
