"""Heads of HTTP requests and responses, and their fields."""
