"""Engines that `bench.engine` measures side by side; each file is a program for an environment of its own."""
