"""Whether answers are right: what they are checked against, how, and how sure accuracy is."""
