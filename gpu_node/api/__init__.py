"""The node's HTTP API: parse, hand to the host, encode. No decisions about models here."""
