"""Rewrites of a graph that keep what it computes: for ``passes.simplify``, one kind per file.

Each takes a graph and changes it in place; what it may touch is only what nobody sees: inputs and
outputs keep their names, and values stay equal but for float rounding.
"""
