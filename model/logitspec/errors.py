"""The one exception the package raises for what a user asked and cannot have."""


class InputError(ValueError):
    """Bad input: the message is one sentence naming the thing, its value and the way out."""
