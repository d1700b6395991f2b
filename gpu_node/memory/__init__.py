"""Lending memory for keys and values between the stages of one model."""
