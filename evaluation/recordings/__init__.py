"""Recordings of greedy runs, and the replay of methods over them without the model."""
