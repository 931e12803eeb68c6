"""A loaded model to talk to: in the terminal, by a page, by OpenAI's API."""
