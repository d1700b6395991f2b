"""The HTTP surface: parse, dispatch, encode. No decisions about nodes are made here."""
