"""The version of the project, in one place. A test holds it equal to the package's metadata."""

__version__ = "0.1.0"
