"""How the gateway talks to nodes: one small interface, a factory per kind."""
