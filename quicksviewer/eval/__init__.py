"""Benchmarks: one loop for all, one small module for each."""
