"""Requests and answers of the APIs that are served, as msgspec structs."""
