"""Chats and completions of causal language models."""
