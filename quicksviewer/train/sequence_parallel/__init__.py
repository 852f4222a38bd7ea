"""Sequence parallelism: the ranks of a team share one sequence, its frames as well as its tokens.

topology: which ranks do what; groups: the same as process groups; comm: collectives with gradients;
plan: which part of a sequence lies where; attention: Ulysses, ring, zigzag ring and their product;
team: what the model calls.
"""
