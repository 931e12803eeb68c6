import evaluation  # noqa: F401  Ctrl-C while a command imports torch
