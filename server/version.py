"""The gateway's version. A test holds it equal to the package's metadata."""

VERSION = "0.1.0"
