import evaluation  # noqa: F401  for what ends a command while it imports
