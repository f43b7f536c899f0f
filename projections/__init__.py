"""Projections: pure folds of the book. The writer decides from them, the live views are their rows, replay folds again.

Nothing here reads a clock, a file, the network or a random number: a fold run twice gives the same bytes.
"""
