"""Samples from files to batches."""
