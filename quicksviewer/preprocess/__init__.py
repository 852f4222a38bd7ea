"""Public data sets become rows of this project: one `convert(row)` and one schema per data set."""
