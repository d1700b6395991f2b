"""The node's own protocol over TCP: clients, their sessions, and what they ask for."""
