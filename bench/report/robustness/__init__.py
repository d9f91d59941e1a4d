"""Tables, plots, claims and a page of `robustness` cells; nothing is measured here."""
