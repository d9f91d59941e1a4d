"""Tables, plots and one HTML page of a frame of results; nothing is measured here."""
