"""Data sets: one family a file; each gives a `Data` with training, validation and test splits."""
