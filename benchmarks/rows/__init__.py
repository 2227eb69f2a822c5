"""The rows of the suite."""
